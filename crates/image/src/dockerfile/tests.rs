mod conformance;
mod refusals;

use super::*;
use expect_test::expect;
use proptest::prelude::*;
use std::fmt::Write as _;

#[derive(Debug, thiserror::Error)]
#[error("no such image")]
struct NoImage;

fn base(reference: &str) -> Result<ImageConfig, NoImage> {
    match reference {
        "nothing" => Err(NoImage),
        "bare" => Ok(ImageConfig::default()),
        _ => Ok(ImageConfig {
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: "/base".to_owned(),
            cmd: vec!["base-cmd".to_owned()],
            ..ImageConfig::default()
        }),
    }
}

fn plan_with(text: &str, build_args: &[(&str, &str)]) -> Result<Plan, DockerfileError> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    plan(
        text.as_bytes(),
        &build_args.iter().map(owned).collect(),
        base,
    )
}

fn words(words: &[String]) -> String {
    words
        .iter()
        .map(|word| format!("{word:?}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn variables(env: &[(String, String)]) -> String {
    let shown = env.iter().map(|(name, value)| format!("{name}={value}"));
    shown.collect::<Vec<_>>().join(" ")
}

fn show_source(source: &Source, plan: &Plan) -> String {
    match source {
        Source::Context => "the context".to_owned(),
        Source::Stage(stage) => format!("stage {}", plan.stages[*stage].name),
        Source::Image(reference) => format!("image {reference}"),
    }
}

fn show_mount(mount: &RunMount, plan: &Plan) -> String {
    let owned = |owner: &FileOwner| format!("{:o} {}:{}", owner.mode, owner.uid, owner.gid);
    let what = match &mount.kind {
        MountKind::Bind {
            from,
            path,
            writable,
        } => {
            let writable = if *writable { ", writable" } else { "" };
            format!("{path} of {}{writable}", show_source(from, plan))
        }
        MountKind::Cache {
            id,
            read_only,
            owner,
        } => {
            let read_only = if *read_only { ", read-only" } else { "" };
            format!("cache {id} {}{read_only}", owned(owner))
        }
        MountKind::Tmpfs { bytes } => format!("tmpfs {bytes:?}"),
        MountKind::Secret {
            id,
            required,
            env,
            owner,
        } => {
            let required = if *required { " required" } else { "" };
            let env = env.as_ref().map(|env| format!(" in {env}"));
            format!(
                "secret {id}{required} {}{}",
                owned(owner),
                env.unwrap_or_default()
            )
        }
        MountKind::Script { content } => format!("script {content:?}"),
    };
    format!(" with {what} at {:?}", mount.target)
}

fn show_copy(copy: &CopyStep, plan: &Plan) -> String {
    let sources = copy.sources.iter().map(|source| match source {
        CopySource::Path(path) => format!("{path:?}"),
        CopySource::Text { name, content } => format!("{name}={content:?}"),
        CopySource::Url { url, name } => format!("{url} as {name:?}"),
    });
    let sources = sources.collect::<Vec<_>>().join(" ");
    let mut text = format!("copy {sources} to {}", copy.dest);
    if copy.from != Source::Context {
        write!(text, " from {}", show_source(&copy.from, plan)).unwrap();
    }
    for (set, word) in [
        (copy.unpack_files, " unpacked"),
        (copy.unpack_urls, " unpacked when fetched"),
        (copy.parents, " with parents"),
    ] {
        text.push_str(if set { word } else { "" });
    }
    if !copy.owner.is_empty() {
        write!(text, " for {}", copy.owner).unwrap();
    }
    if let Some(mode) = copy.chmod {
        write!(text, " as {mode:o}").unwrap();
    }
    if !copy.excludes.is_empty() {
        write!(text, " without {}", copy.excludes.join(" ")).unwrap();
    }
    if let Some(checksum) = &copy.checksum {
        write!(text, " summing to {checksum}").unwrap();
    }
    text
}

fn show_step(step: &Step, plan: &Plan) -> String {
    let what = match &step.kind {
        StepKind::Run(run) => {
            let user = if run.user.is_empty() {
                "root"
            } else {
                &run.user
            };
            let mounts = run.mounts.iter().map(|mount| show_mount(mount, plan));
            format!(
                "run {} | {} | {} | {user}{}{}",
                words(&run.argv),
                variables(&[run.env.as_slice(), &run.proxies].concat()),
                run.cwd,
                if run.offline { " offline" } else { "" },
                mounts.collect::<String>()
            )
        }
        StepKind::Copy(copy) => show_copy(copy, plan),
        StepKind::Workdir { path, owner } => format!("workdir {path} {owner}"),
        StepKind::Config => "config".to_owned(),
    };
    format!("{}: {}: {what}\n", step.line, step.text)
}

/// A plan as text: each step, then what differs from the base image; or the error.
fn show(text: &str, build_args: &[(&str, &str)]) -> String {
    let plan = match plan_with(text, build_args) {
        Ok(plan) => plan,
        Err(error) => return format!("error: {error}\n"),
    };
    show_plan(&plan)
}

fn show_plan(plan: &Plan) -> String {
    let mut shown = String::new();
    let one = plan.stages.len() == 1;
    for stage in &plan.stages {
        let from = match &stage.base {
            Base::Scratch => "scratch".to_owned(),
            Base::Stage(from) => format!("stage {}", plan.stages[*from].name),
            Base::Image(reference) => reference.clone(),
        };
        let name = if one {
            String::new()
        } else {
            format!("{}: ", stage.name)
        };
        writeln!(shown, "{name}from {from}").unwrap();
        shown.extend(stage.steps.iter().map(|step| show_step(step, plan)));
    }
    show_config(&plan.config, &mut shown);
    shown
}

fn show_config(config: &ImageConfig, shown: &mut String) {
    writeln!(shown, "env {}", variables(&config.env)).unwrap();
    writeln!(
        shown,
        "argv {} in {} as {:?}",
        words(&config.argv()),
        config.cwd(),
        config.user
    )
    .unwrap();
    let mut more = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            writeln!(shown, "{what} {value}").unwrap();
        }
    };
    let list = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
    more("exposes", list(&config.exposed));
    let labels = (!config.labels.is_empty()).then(|| format!("{:?}", config.labels));
    more("labels", labels);
    more("shell", list(&config.shell));
    more("volumes", list(&config.volumes));
    more(
        "onbuild",
        (!config.onbuild.is_empty()).then(|| format!("{:?}", config.onbuild)),
    );
    more("stops by", config.stop_signal.clone());
    more("by", config.author.clone());
    let check = config.healthcheck.as_ref();
    more("health", check.map(|check| format!("{check:?}")));
}

/// Several small Dockerfiles, each beginning after `FROM b` on line 1.
fn show_each(bodies: &[&str]) -> String {
    let show_one = |body: &&str| format!("--- {body}\n{}", show(&format!("FROM b\n{body}\n"), &[]));
    bodies.iter().map(show_one).collect()
}

#[test]
fn a_whole_dockerfile_becomes_a_plan() {
    let text = "\
# syntax=docker/dockerfile:1
ARG DEBIAN=12
FROM localhost/debian:${DEBIAN} AS main

LABEL org.example.name=\"My App\" version=1
ARG PIP=pip3
ENV APP=/srv/app \\
    # a comment between
    MODE=prod
WORKDIR $APP
COPY --chown=app:app --chmod=0644 requirements.txt ./
RUN apt-get update && \\
    # why
    apt-get install -y curl
RUN [\"$PIP\", \"install\"]
ADD . ${APP}/code/
USER app
EXPOSE 8080 53/UDP
ENTRYPOINT [\"python3\", \"-m\"]
CMD [\"app\", \"$APP\"]
";
    expect![[r#"
        from localhost/debian:12
        5: LABEL org.example.name="My App" version=1: config
        7: ENV APP=/srv/app MODE=prod: config
        10: WORKDIR $APP: workdir /srv/app 
        11: COPY --chown=app:app --chmod=0644 requirements.txt ./: copy "requirements.txt" to /srv/app/ for app:app as 644
        12: RUN apt-get update && apt-get install -y curl: run "/bin/sh" "-c" "apt-get update &&     apt-get install -y curl" | PATH=/bin APP=/srv/app MODE=prod PIP=pip3 | /srv/app | root
        15: RUN ["$PIP", "install"]: run "$PIP" "install" | PATH=/bin APP=/srv/app MODE=prod PIP=pip3 | /srv/app | root
        16: ADD . ${APP}/code/: copy "." to /srv/app/code/ unpacked
        17: USER app: config
        18: EXPOSE 8080 53/UDP: config
        19: ENTRYPOINT ["python3", "-m"]: config
        20: CMD ["app", "$APP"]: config
        env PATH=/bin APP=/srv/app MODE=prod
        argv "python3" "-m" "app" "$APP" in /srv/app as "app"
        exposes 8080/tcp 53/udp
        labels {"org.example.name": "My App", "version": "1"}
    "#]].assert_eq(&show(text, &[]));
}

#[test]
fn env_and_labels_in_every_form() {
    let bodies = [
        "ENV A=1 B=$A C=\"x y\" D='$A' E=p\\ q F=",
        "ENV A=1\nENV A=2 B=$A\nENV C=$A",
        "ENV NAME the rest  of it $PATH",
        "ENV PATH=/app:$PATH",
        "ENV A=${X:-d} B=${PATH:+set} C=\\$A",
        "LABEL a.b=c \"d e\"=\"f g\"\nLABEL h=i",
        "ENV A=\"multi \\\nline\"",
    ];
    expect![[r#"
        --- ENV A=1 B=$A C="x y" D='$A' E=p\ q F=
        from b
        2: ENV A=1 B=$A C="x y" D='$A' E=p\ q F=: config
        env PATH=/bin A=1 B= C=x y D=$A E=p q F=
        argv "base-cmd" in /base as ""
        --- ENV A=1
        ENV A=2 B=$A
        ENV C=$A
        from b
        2: ENV A=1: config
        3: ENV A=2 B=$A: config
        4: ENV C=$A: config
        env PATH=/bin A=2 B=1 C=2
        argv "base-cmd" in /base as ""
        --- ENV NAME the rest  of it $PATH
        from b
        2: ENV NAME the rest of it $PATH: config
        env PATH=/bin NAME=the rest  of it /bin
        argv "base-cmd" in /base as ""
        --- ENV PATH=/app:$PATH
        from b
        2: ENV PATH=/app:$PATH: config
        env PATH=/app:/bin
        argv "base-cmd" in /base as ""
        --- ENV A=${X:-d} B=${PATH:+set} C=\$A
        from b
        2: ENV A=${X:-d} B=${PATH:+set} C=\$A: config
        env PATH=/bin A=d B=set C=$A
        argv "base-cmd" in /base as ""
        --- LABEL a.b=c "d e"="f g"
        LABEL h=i
        from b
        2: LABEL a.b=c "d e"="f g": config
        3: LABEL h=i: config
        env PATH=/bin
        argv "base-cmd" in /base as ""
        labels {"a.b": "c", "d e": "f g", "h": "i"}
        --- ENV A="multi \
        line"
        from b
        2: ENV A="multi line": config
        env PATH=/bin A=multi line
        argv "base-cmd" in /base as ""
    "#]]
    .assert_eq(&show_each(&bodies));
}

#[test]
fn args_are_scoped() {
    let text = "\
ARG TAG=1
ARG IMAGE=img:$TAG
ARG GLOBAL=g
FROM $IMAGE
RUN echo $TAG
ARG TAG
ARG LATER=${TAG}x UNSET
ARG GLOBAL=own
ENV LATER=env
RUN echo
ARG TARGETOS
COPY $TAG /$LATER
RUN true
";
    expect![[r#"
        from img:1
        5: RUN echo $TAG: run "/bin/sh" "-c" "echo $TAG" | PATH=/bin | /base | root
        9: ENV LATER=env: config
        10: RUN echo: run "/bin/sh" "-c" "echo" | PATH=/bin LATER=env GLOBAL=own TAG=1 | /base | root
        12: COPY $TAG /$LATER: copy "1" to /env
        13: RUN true: run "/bin/sh" "-c" "true" | PATH=/bin LATER=env GLOBAL=own TAG=1 TARGETOS=linux | /base | root
        env PATH=/bin LATER=env
        argv "base-cmd" in /base as ""
    "#]].assert_eq(&show(text, &[]));
    expect![[r#"
        from img:9
        5: RUN echo $TAG: run "/bin/sh" "-c" "echo $TAG" | PATH=/bin http_proxy=p | /base | root
        9: ENV LATER=env: config
        10: RUN echo: run "/bin/sh" "-c" "echo" | PATH=/bin LATER=env GLOBAL=given TAG=9 http_proxy=p | /base | root
        12: COPY $TAG /$LATER: copy "9" to /env
        13: RUN true: run "/bin/sh" "-c" "true" | PATH=/bin LATER=env GLOBAL=given TAG=9 TARGETOS=linux http_proxy=p | /base | root
        env PATH=/bin LATER=env
        argv "base-cmd" in /base as ""
    "#]].assert_eq(&show(
        text,
        &[
            ("TAG", "9"),
            ("GLOBAL", "given"),
            ("OTHER", "x"),
            ("http_proxy", "p"),
        ],
    ));
}

#[test]
fn a_proxy_that_the_dockerfile_sets_is_none_of_the_builds() {
    let text = "FROM b\nENV http_proxy=own\nARG NO_PROXY\nRUN true";
    let args = [("http_proxy", "p"), ("NO_PROXY", "n"), ("HTTPS_PROXY", "q")];
    let plan = plan_with(text, &args).unwrap();
    let steps = &plan.stages[0].steps;
    let Some(StepKind::Run(run)) = steps.last().map(|step| &step.kind) else {
        panic!("{steps:?}");
    };
    assert_eq!(variables(&run.env), "PATH=/bin http_proxy=own NO_PROXY=n");
    assert_eq!(variables(&run.proxies), "HTTPS_PROXY=q");
}

#[test]
fn run_has_a_shell_an_exec_and_a_here_document_form() {
    let bodies = [
        "RUN echo $HOME \"a  b\"",
        "RUN [\"echo\", \"$HOME\", \"a\\tb\"]",
        "RUN ['not', 'json']",
        "RUN a \\\n  b \\\n\n  # no\n  c",
        "RUN <<EOF\necho one\necho two\nEOF\nUSER u",
        "RUN <<-'EOF' sh -x\n\techo $A\n\tEOF\nUSER u",
        "RUN echo $((1<<2)) \"<<EOF\"",
        "USER 1000:1000\nWORKDIR rel\nRUN id",
    ];
    expect![[r#"
        --- RUN echo $HOME "a  b"
        from b
        2: RUN echo $HOME "a b": run "/bin/sh" "-c" "echo $HOME \"a  b\"" | PATH=/bin | /base | root
        env PATH=/bin
        argv "base-cmd" in /base as ""
        --- RUN ["echo", "$HOME", "a\tb"]
        from b
        2: RUN ["echo", "$HOME", "a\tb"]: run "echo" "$HOME" "a\tb" | PATH=/bin | /base | root
        env PATH=/bin
        argv "base-cmd" in /base as ""
        --- RUN ['not', 'json']
        from b
        2: RUN ['not', 'json']: run "/bin/sh" "-c" "['not', 'json']" | PATH=/bin | /base | root
        env PATH=/bin
        argv "base-cmd" in /base as ""
        --- RUN a \
          b \

          # no
          c
        from b
        2: RUN a b c: run "/bin/sh" "-c" "a   b   c" | PATH=/bin | /base | root
        env PATH=/bin
        argv "base-cmd" in /base as ""
        --- RUN <<EOF
        echo one
        echo two
        EOF
        USER u
        from b
        2: RUN <<EOF: run "/bin/sh" "-c" "echo one\necho two\n" | PATH=/bin | /base | root
        6: USER u: config
        env PATH=/bin
        argv "base-cmd" in /base as "u"
        --- RUN <<-'EOF' sh -x
        	echo $A
        	EOF
        USER u
        from b
        2: RUN <<-'EOF' sh -x: run "/bin/sh" "-c" "<<-'EOF' sh -x\n\techo $A\nEOF" | PATH=/bin | /base | root
        5: USER u: config
        env PATH=/bin
        argv "base-cmd" in /base as "u"
        --- RUN echo $((1<<2)) "<<EOF"
        from b
        2: RUN echo $((1<<2)) "<<EOF": run "/bin/sh" "-c" "echo $((1<<2)) \"<<EOF\"" | PATH=/bin | /base | root
        env PATH=/bin
        argv "base-cmd" in /base as ""
        --- USER 1000:1000
        WORKDIR rel
        RUN id
        from b
        2: USER 1000:1000: config
        3: WORKDIR rel: workdir /base/rel 1000:1000
        4: RUN id: run "/bin/sh" "-c" "id" | PATH=/bin | /base/rel | 1000:1000
        env PATH=/bin
        argv "base-cmd" in /base/rel as "1000:1000"
    "#]].assert_eq(&show_each(&bodies));
}

#[test]
fn the_escape_directive_changes_the_escape() {
    let text = "# escape=`\nFROM b\nENV P=C:\\x D=`$PATH\nRUN a `\n  b \\\\\n";
    expect![[r#"
        from b
        3: ENV P=C:\x D=`$PATH: config
        4: RUN a b \\: run "/bin/sh" "-c" "a   b \\\\" | PATH=/bin P=C:\x D=$PATH | /base | root
        env PATH=/bin P=C:\x D=$PATH
        argv "base-cmd" in /base as ""
    "#]]
    .assert_eq(&show(text, &[]));
}

#[test]
fn entrypoint_resets_the_command_that_was_inherited() {
    let bodies = [
        "ENTRYPOINT [\"e\"]",
        "CMD [\"c\"]\nENTRYPOINT [\"e\"]",
        "ENTRYPOINT [\"e\"]\nCMD c $X",
        "ENTRYPOINT e $X",
        "CMD []\nENTRYPOINT [\"e\"]",
        "EXPOSE 1",
    ];
    expect![[r#"
        --- ENTRYPOINT ["e"]
        from b
        2: ENTRYPOINT ["e"]: config
        env PATH=/bin
        argv "e" in /base as ""
        --- CMD ["c"]
        ENTRYPOINT ["e"]
        from b
        2: CMD ["c"]: config
        3: ENTRYPOINT ["e"]: config
        env PATH=/bin
        argv "e" "c" in /base as ""
        --- ENTRYPOINT ["e"]
        CMD c $X
        from b
        2: ENTRYPOINT ["e"]: config
        3: CMD c $X: config
        env PATH=/bin
        argv "e" "/bin/sh" "-c" "c $X" in /base as ""
        --- ENTRYPOINT e $X
        from b
        2: ENTRYPOINT e $X: config
        env PATH=/bin
        argv "/bin/sh" "-c" "e $X" in /base as ""
        --- CMD []
        ENTRYPOINT ["e"]
        from b
        2: CMD []: config
        3: ENTRYPOINT ["e"]: config
        env PATH=/bin
        argv "e" in /base as ""
        --- EXPOSE 1
        from b
        2: EXPOSE 1: config
        env PATH=/bin
        argv "base-cmd" in /base as ""
        exposes 1/tcp
    "#]]
    .assert_eq(&show_each(&bodies));
    expect![[r#"
        from bare
        2: CMD true: config
        env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        argv "/bin/sh" "-c" "true" in / as ""
    "#]]
    .assert_eq(&show("FROM bare\nCMD true\n", &[]));
    expect![[r#"
        error: the Dockerfile has no CMD or ENTRYPOINT, and its base image has none either
    "#]]
    .assert_eq(&show("FROM bare\nRUN true\n", &[]));
    expect![[r#"
        error: the Dockerfile has no CMD or ENTRYPOINT, and its base image has none either
    "#]]
    .assert_eq(&show("FROM b\nCMD []\n", &[]));
}

#[test]
fn paths_are_seen_from_the_working_directory() {
    let bodies = [
        "WORKDIR a\nWORKDIR ../b/./c\nWORKDIR /\nWORKDIR x/",
        "COPY a b c/\nCOPY a .\nCOPY a ./d\nCOPY a /\nCOPY a /x/../y\nCOPY a /z/.",
        "COPY [\"with space\", \"/to here/\"]",
        "ENV D=/d U=app\nCOPY --chmod=755 $D/x* ${D}/\nADD --chown=$U:1 a b",
        "USER u\nWORKDIR /w\nCOPY --link a b",
    ];
    expect![[r#"
        --- WORKDIR a
        WORKDIR ../b/./c
        WORKDIR /
        WORKDIR x/
        from b
        2: WORKDIR a: workdir /base/a 
        3: WORKDIR ../b/./c: workdir /base/b/c 
        4: WORKDIR /: workdir / 
        5: WORKDIR x/: workdir /x 
        env PATH=/bin
        argv "base-cmd" in /x as ""
        --- COPY a b c/
        COPY a .
        COPY a ./d
        COPY a /
        COPY a /x/../y
        COPY a /z/.
        from b
        2: COPY a b c/: copy "a" "b" to /base/c/
        3: COPY a .: copy "a" to /base/
        4: COPY a ./d: copy "a" to /base/d
        5: COPY a /: copy "a" to /
        6: COPY a /x/../y: copy "a" to /y
        7: COPY a /z/.: copy "a" to /z/
        env PATH=/bin
        argv "base-cmd" in /base as ""
        --- COPY ["with space", "/to here/"]
        from b
        2: COPY ["with space", "/to here/"]: copy "with space" to /to here/
        env PATH=/bin
        argv "base-cmd" in /base as ""
        --- ENV D=/d U=app
        COPY --chmod=755 $D/x* ${D}/
        ADD --chown=$U:1 a b
        from b
        2: ENV D=/d U=app: config
        3: COPY --chmod=755 $D/x* ${D}/: copy "/d/x*" to /d/ as 755
        4: ADD --chown=$U:1 a b: copy "a" to /base/b unpacked for app:1
        env PATH=/bin D=/d U=app
        argv "base-cmd" in /base as ""
        --- USER u
        WORKDIR /w
        COPY --link a b
        from b
        2: USER u: config
        3: WORKDIR /w: workdir /w u
        4: COPY --link a b: copy "a" to /w/b
        env PATH=/bin
        argv "base-cmd" in /w as "u"
    "#]]
    .assert_eq(&show_each(&bodies));
}

#[test]
fn limits_hold() {
    let max = usize::try_from(limits::DOCKERFILE_BYTES_MAX).unwrap();
    let error = plan_with(&" ".repeat(max + 1), &[]).unwrap_err();
    assert!(matches!(error, DockerfileError::TooLarge { .. }), "{error}");
    let steps = "RUN true\n".repeat(limits::DOCKERFILE_STEPS_MAX);
    let error = plan_with(&format!("FROM b\n{steps}"), &[]).unwrap_err();
    assert!(
        matches!(
            error,
            DockerfileError::TooManySteps {
                line: 501,
                max: 500
            }
        ),
        "{error}"
    );
    let doubling = "ENV A=$A$A\n".repeat(60);
    let error = plan_with(&format!("FROM b\nENV A=xxxxxxxx\n{doubling}"), &[]).unwrap_err();
    assert!(matches!(error, DockerfileError::Invalid { .. }), "{error}");
    let wide = "COPY $A$A$A$A$A$A$A$A /x/\n".repeat(400);
    let text = format!("FROM b\nENV A={}\n{wide}", "x".repeat(100_000));
    let error = plan_with(&text, &[]).unwrap_err();
    assert!(
        error.to_string().contains("expand to too much text"),
        "{error}"
    );
    let text = format!(
        "FROM b\nCMD {}\n",
        "x".repeat(limits::IMAGE_CONFIG_BYTES_MAX)
    );
    let error = plan_with(&text, &[]).unwrap_err();
    assert!(
        error.to_string().contains("command pass 131072 bytes"),
        "{error}"
    );
    let error = plan_with("FROM b\nRUN a\0b", &[]).unwrap_err();
    assert_eq!(error.to_string(), "line 2: there is a NUL byte");
    let error = plan(b"FROM \xff", &BTreeMap::new(), base).unwrap_err();
    assert!(matches!(error, DockerfileError::NotText));
}

#[test]
fn the_base_image_is_named_when_it_cannot_be_used() {
    let error = plan_with("ARG I=nothing\nFROM $I\nCMD x", &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 2: cannot use the base image `nothing`"
    );
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "no such image"
    );
}

#[test]
fn line_endings_and_a_byte_order_mark_do_not_matter() {
    let unix = "FROM b\nRUN a \\\n  b\nENV X=1\n";
    let windows = format!("\u{feff}{}", unix.replace('\n', "\r\n"));
    assert_eq!(show(&windows, &[]), show(unix, &[]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = plan(&bytes, &BTreeMap::new(), base);
    }

    #[test]
    fn arbitrary_instructions_never_panic(
        lines in proptest::collection::vec(
            "(ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|LABEL|RUN|USER|WORKDIR|SHELL|VOLUME|ONBUILD)\
             [ \\t]?[-a=$\\{}:+\"'\\[\\], <E\\\\\n\r#/.0ü]{0,24}", 0..6),
    ) {
        let text = format!("FROM b\n{}", lines.join("\n"));
        if let Ok(plan) = plan_with(&text, &[]) {
            prop_assert!(plan.config.cwd().starts_with('/'));
            for stage in &plan.stages {
                prop_assert!(stage.steps.iter().all(|step| step.line >= 1));
            }
        }
    }

    #[test]
    fn arbitrary_stages_never_panic(
        lines in proptest::collection::vec(
            "(FROM [a-c0-2]( AS [a-c])?|COPY --from=[a-c0-3] [a-c*] /|COPY <<-?E /x\n?[$\\{}a\n]{0,8}\nE|\
             RUN --mount=(type=(bind|cache|tmpfs|secret|ssh),)?(from=[a-c0-2],)?(target=/[a-c])?(,rw)? true|\
             RUN <<\"?E\"? [a-c|]{0,3}\n[#!$a\n]{0,6}\nE|ONBUILD (RUN|COPY|ENV) [a-c= ]{0,6}|\
             ADD (--checksum=sha256:[0-9a-f]{0,3} )?https?://[a-c./]{0,6} /|ARG [a-c](=\\$[a-c])?)", 0..9),
    ) {
        let text = lines.join("\n");
        let _ = references(text.as_bytes(), &BTreeMap::new());
        if let Ok(plan) = plan_with(&text, &[]) {
            for (index, stage) in plan.stages.iter().enumerate() {
                if let Base::Stage(from) = stage.base {
                    prop_assert!(from < index);
                }
            }
        }
    }
}
