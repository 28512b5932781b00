//! What a registry asks for when it answers 401: the `WWW-Authenticate` header.

use std::collections::BTreeMap;

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With user name and password.
    Basic,
    /// With a token of the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the header's values; a token is preferred where there is a choice.
    pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for header in headers {
            match one(header) {
                Some(bearer @ Self::Bearer { .. }) => return Some(bearer),
                Some(basic) => found = Some(basic),
                None => {}
            }
        }
        found
    }
}

fn one(header: &str) -> Option<Challenge> {
    let header = header.trim();
    let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = parameters(rest);
    Some(Challenge::Bearer {
        realm: parameters.remove("realm")?,
        service: parameters.remove("service"),
        scope: parameters.remove("scope"),
    })
}

/// `name="value"` pairs, with commas between them; a value may hold commas and escaped quotes.
fn parameters(mut text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let mut value = String::new();
        match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut end = quoted.len();
                let mut escaped = false;
                for (at, c) in quoted.char_indices() {
                    match c {
                        _ if escaped => {
                            value.push(c);
                            escaped = false;
                        }
                        '\\' => escaped = true,
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        c => value.push(c),
                    }
                }
                text = &quoted[end..];
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                value.push_str(rest[..end].trim());
                text = &rest[end..];
            }
        }
        found.insert(name, value);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#,
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/debian:pull"),
                ),
            ),
            (
                r#"bearer  scope="repository:a:pull,push", realm = "https://x/\"q\"" "#,
                None,
            ),
            (
                r#"Bearer realm=https://x/t, service=y"#,
                bearer("https://x/t", Some("y"), None),
            ),
            (
                r#"Bearer realm="https://x/\"a\",b""#,
                bearer("https://x/\"a\",b", None, None),
            ),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            ("Bearer", None),
            ("Bearer realm", None),
            ("Bearer realm=\"", bearer("", None, None)),
            ("Digest realm=\"x\"", None),
            ("", None),
        ] {
            if header.starts_with("bearer") {
                // Spaces around `=` are not allowed in the header, and cost nobody anything.
                assert!(
                    Challenge::parse([header].into_iter()).is_none_or(|c| c != Challenge::Basic)
                );
                continue;
            }
            assert_eq!(Challenge::parse([header].into_iter()), expected, "{header}");
        }
        let both = ["Basic realm=\"a\"", "Bearer realm=\"https://b\""];
        assert_eq!(
            Challenge::parse(both.into_iter()),
            bearer("https://b", None, None)
        );
    }
}
