//! What is refused, and how it is said.

use super::*;

#[test]
fn another_cpu_is_refused_by_its_line() {
    expect![[r#"
        error: line 1: FROM --platform=linux/s390x is not supported: remove it; images run on this host's CPU
    "#]].assert_eq(&show("FROM --platform=linux/s390x b", &[]));
    expect![[r#"
        from b
        env PATH=/bin
        argv "base-cmd" in /base as ""
    "#]]
    .assert_eq(&show("FROM --platform=$TARGETPLATFORM b", &[]));
}

#[test]
fn what_is_wrong_is_refused_by_its_line() {
    let bodies = [
        "RUNN true",
        "RUN",
        "COPY a",
        "COPY a b c",
        "COPY $NOTHING /x",
        "COPY --chmod=u+x a b",
        "COPY --chmod=99 a b",
        "COPY --chown=a:b:c a b",
        "ENV A",
        "ENV A=1 B",
        "ENV =x",
        "ENV A=${B",
        "ENV A=\"x",
        "LABEL a",
        "ARG 1-2",
        "EXPOSE http",
        "EXPOSE 70000",
        "EXPOSE 9-8",
        "USER a b",
        "USER $NOTHING",
        "WORKDIR $NOTHING",
        "RUN <<EOF\nnever ends",
        "ENTRYPOINT []",
        "COPY --chown=/etc a b",
        "CMD [\"a\\u0000b\"]",
        "COPY [\"a\\u0000b\", \"/x\"]",
    ];
    expect![[r#"
        --- RUNN true
        error: line 2: unknown instruction: RUNN
        --- RUN
        error: line 2: RUN requires at least one argument
        --- COPY a
        error: line 2: COPY requires at least two arguments: a source and where to
        --- COPY a b c
        error: line 2: several sources are copied, so the destination must end in `/`
        --- COPY $NOTHING /x
        error: line 2: a source is empty; is its variable set?
        --- COPY --chmod=u+x a b
        error: line 2: --chmod=u+x is no octal mode, as in 755
        --- COPY --chmod=99 a b
        error: line 2: --chmod=99 is no octal mode, as in 755
        --- COPY --chown=a:b:c a b
        error: line 2: `a:b:c` is no user, as in app, app:app or 1000:1000
        --- ENV A
        error: line 2: a name has no value
        --- ENV A=1 B
        error: line 2: `B` is not of the form name=value
        --- ENV =x
        error: line 2: a name is empty or contains `=`
        --- ENV A=${B
        error: line 2: a `}` is missing
        --- ENV A="x
        error: line 2: a double quote is not closed
        --- LABEL a
        error: line 2: a name has no value
        --- ARG 1-2
        error: line 2: `1-2` is no ARG name
        --- EXPOSE http
        error: line 2: `http` is no port, as in 8080 or 53/udp
        --- EXPOSE 70000
        error: line 2: `70000` is no port, as in 8080 or 53/udp
        --- EXPOSE 9-8
        error: line 2: `9-8` is no port, as in 8080 or 53/udp
        --- USER a b
        error: line 2: `a b` is no user, as in app, app:app or 1000:1000
        --- USER $NOTHING
        error: line 2: `` is no user, as in app, app:app or 1000:1000
        --- WORKDIR $NOTHING
        error: line 2: WORKDIR is empty; is its variable set?
        --- RUN <<EOF
        never ends
        error: line 2: the here-document EOF has no end
        --- ENTRYPOINT []
        error: the Dockerfile has no CMD or ENTRYPOINT, and its base image has none either
        --- COPY --chown=/etc a b
        error: line 2: `/etc` is no user, as in app, app:app or 1000:1000
        --- CMD ["a\u0000b"]
        error: line 2: there is a NUL byte
        --- COPY ["a\u0000b", "/x"]
        error: line 2: there is a NUL byte
    "#]]
    .assert_eq(&show_each(&bodies));
    let wholes = [
        "",
        "# nothing",
        "RUN true",
        "ARG A=1",
        "FROM",
        "FROM $A",
        "ENV A=1\nFROM b",
        "FROM nothing",
        "FROM b AS",
        "FROM b b",
        "FROM --x=y b",
    ];
    let shown: String = wholes
        .iter()
        .map(|text| format!("--- {text}\n{}", show(text, &[])))
        .collect();
    expect![[r#"
        --- 
        error: line 1: there is no FROM
        --- # nothing
        error: line 1: there is no FROM
        --- RUN true
        error: line 1: an instruction comes before the first FROM
        --- ARG A=1
        error: line 1: there is no FROM
        --- FROM
        error: line 1: FROM requires at least one argument
        --- FROM $A
        error: line 1: FROM names no image; is its ARG set?
        --- ENV A=1
        FROM b
        error: line 1: an instruction comes before the first FROM
        --- FROM nothing
        error: line 1: cannot use the base image `nothing`
        --- FROM b AS
        error: line 1: FROM requires either one or three arguments, as in FROM image AS name
        --- FROM b b
        error: line 1: FROM requires either one or three arguments, as in FROM image AS name
        --- FROM --x=y b
        error: line 1: FROM has no option --x
    "#]]
    .assert_eq(&shown);
}
