//! What is refused, and how it is said.

use super::*;

#[test]
fn what_is_not_supported_is_refused_by_its_line() {
    let bodies = [
        "RUN true\nFROM other",
        "FROM b\nCOPY --from=0 a b",
        "\nHEALTHCHECK NONE",
        "MAINTAINER me",
        "ONBUILD RUN true",
        "SHELL [\"bash\", \"-c\"]",
        "STOPSIGNAL SIGTERM",
        "VOLUME /data",
        "RUN --mount=type=cache,target=/x true",
        "COPY --from=builder a b",
        "COPY --exclude=x a b",
        "COPY <<EOF /x\nhi\nEOF",
        "ADD https://example.com/x /x",
        "ARG U=git@example.com:x\nADD $U /x",
        "RUN cat <<EOF > /x\nhi\nEOF",
        "RUN <<EOF\n#!/usr/bin/python3\nEOF",
    ];
    expect![[r#"
        --- RUN true
        FROM other
        error: line 3: a second FROM (multi-stage build) is not supported: keep one FROM, and put what the other stages make into the archive
        --- FROM b
        COPY --from=0 a b
        error: line 2: a second FROM (multi-stage build) is not supported: keep one FROM, and put what the other stages make into the archive
        --- 
        HEALTHCHECK NONE
        error: line 3: HEALTHCHECK is not supported: remove it; the image's ready hook tells when the app is ready
        --- MAINTAINER me
        error: line 2: MAINTAINER is not supported: remove it, or use LABEL
        --- ONBUILD RUN true
        error: line 2: ONBUILD is not supported: write the instruction where it is needed
        --- SHELL ["bash", "-c"]
        error: line 2: SHELL is not supported: use the exec form, as in RUN ["bash", "-c", "..."]
        --- STOPSIGNAL SIGTERM
        error: line 2: STOPSIGNAL is not supported: remove it
        --- VOLUME /data
        error: line 2: VOLUME is not supported: remove it; a MicroVM keeps its whole file system
        --- RUN --mount=type=cache,target=/x true
        error: line 2: RUN --mount is not supported: remove the option
        --- COPY --from=builder a b
        error: line 2: COPY --from is not supported: keep one FROM, and put the files into the archive
        --- COPY --exclude=x a b
        error: line 2: COPY --exclude is not supported: name the files in .dockerignore
        --- COPY <<EOF /x
        hi
        EOF
        error: line 2: COPY of a here-document is not supported: put the file into the archive
        --- ADD https://example.com/x /x
        error: line 2: ADD of a URL, `https://example.com/x`, is not supported: put the file into the archive, or RUN curl
        --- ARG U=git@example.com:x
        ADD $U /x
        error: line 3: ADD of a URL, `git@example.com:x`, is not supported: put the file into the archive, or RUN curl
        --- RUN cat <<EOF > /x
        hi
        EOF
        error: line 2: a here-document that does not follow RUN is not supported: write it first, as in RUN <<EOF python3
        --- RUN <<EOF
        #!/usr/bin/python3
        EOF
        error: line 2: a here-document that begins with #! is not supported: name the interpreter, as in RUN <<EOF python3
    "#]].assert_eq(&show_each(&bodies));
    expect![[r#"
        error: line 1: FROM scratch is not supported: begin with an image that has files
    "#]]
    .assert_eq(&show("FROM scratch\nCMD x", &[]));
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
        error: line 2: unknown instruction 'RUNN'
        --- RUN
        error: line 2: RUN has no command
        --- COPY a
        error: line 2: COPY instruction requires at least two arguments
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
        error: line 4: expected end of here-document (EOF), but reached eof
        --- ENTRYPOINT []
        error: line 2: ENTRYPOINT instruction requires at least one argument
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
        error: line 1: expected at least one FROM instruction
        --- # nothing
        error: line 1: expected at least one FROM instruction
        --- RUN true
        error: line 1: expected FROM
        --- ARG A=1
        error: line 1: expected at least one FROM instruction
        --- FROM
        error: line 1: FROM instruction requires at least one argument
        --- FROM $A
        error: line 1: FROM names no image; is its ARG set?
        --- ENV A=1
        FROM b
        error: line 1: expected FROM
        --- FROM nothing
        error: line 1: cannot use the base image `nothing`
        --- FROM b AS
        error: line 1: expected AS
        --- FROM b b
        error: line 1: expected AS
        --- FROM --x=y b
        error: line 1: FROM has no option --x
    "#]]
    .assert_eq(&shown);
}
