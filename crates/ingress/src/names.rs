//! Which endpoint a host name means: the name below the endpoint domain, or a custom domain.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use dormouse_core::EndpointId;

/// Custom domains and the endpoints that they stand for. Whoever has the handle may change them while
/// the ingress reads.
#[derive(Debug, Default)]
pub struct Domains(RwLock<HashMap<String, EndpointId>>);

impl Domains {
    /// Lets `name`, in lower case, stand for `endpoint`.
    pub fn point(&self, name: String, endpoint: EndpointId) {
        let mut domains = self.0.write().unwrap_or_else(PoisonError::into_inner);
        domains.insert(name, endpoint);
    }

    /// Lets `name` stand for nothing.
    pub fn release(&self, name: &str) {
        let mut domains = self.0.write().unwrap_or_else(PoisonError::into_inner);
        domains.remove(name);
    }

    /// What `name`, in lower case, stands for.
    #[must_use]
    pub fn endpoint(&self, name: &str) -> Option<EndpointId> {
        let domains = self.0.read().unwrap_or_else(PoisonError::into_inner);
        domains.get(name).cloned()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let domains = self.0.read().unwrap_or_else(PoisonError::into_inner);
        domains.is_empty()
    }
}

/// All the names by which endpoints are reached.
#[derive(Debug, Clone)]
pub struct Names {
    /// Domains directly below which each MicroVM has its name, in lower case and without a port.
    suffixes: Vec<String>,
    domains: Arc<Domains>,
}

impl Names {
    /// Names directly below one of `suffixes`, and custom domains.
    #[must_use]
    pub fn new(suffixes: &[&str], domains: Arc<Domains>) -> Self {
        let suffixes = suffixes.iter().map(|suffix| suffix.to_ascii_lowercase());
        Self {
            suffixes: suffixes.collect(),
            domains,
        }
    }

    /// The endpoint that `host`, as [`normal`] makes it, means.
    pub(crate) fn endpoint(&self, host: &str) -> Option<EndpointId> {
        match host.split_once('.') {
            Some((label, rest)) if self.suffixes.iter().any(|suffix| suffix == rest) => {
                EndpointId::parse(label)
            }
            _ => self.domains.endpoint(host),
        }
    }
}

/// Host names compare without case and without the dot of a full name.
pub(crate) fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether `name` is `host`, as [`normal`] makes it.
pub(crate) fn is_same(name: &str, host: &str) -> bool {
    name.strip_suffix('.')
        .unwrap_or(name)
        .eq_ignore_ascii_case(host)
}

/// Whether a certificate for `pattern` is good for `name`: a star stands for one label, whatever it is.
pub(crate) fn covers(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix("*."), name.split_once('.')) {
        (Some(rest), Some((label, below))) => !label.is_empty() && rest == below,
        (Some(_), None) => false,
        (None, _) => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "30d00336-db07-f4f5-79c1-8571c22bef9e";

    #[test]
    fn an_endpoint_has_one_name_below_each_suffix_and_as_many_of_its_own_as_it_was_given() {
        let domains = Arc::new(Domains::default());
        let names = Names::new(&["VM.example.com", "on.aws"], Arc::clone(&domains));
        let means = |host: &str| names.endpoint(host).map(|id| id.to_string());
        let id = Some(ID.to_owned());
        assert_eq!(means(&format!("{ID}.vm.example.com")), id);
        assert_eq!(means(&format!("{ID}.on.aws")), id);
        for stranger in [
            ID.to_owned(),
            "app.example.org".to_owned(),
            format!("{ID}.example.com"),
            format!("x.{ID}.on.aws"),
        ] {
            assert_eq!(means(&stranger), None, "{stranger}");
        }
        let endpoint = EndpointId::parse(ID).expect("id");
        domains.point("app.example.org".to_owned(), endpoint);
        assert_eq!(means("app.example.org"), id);
        // What looks like an endpoint's name is never another's.
        domains.point("x.on.aws".to_owned(), endpoint);
        assert_eq!(means("x.on.aws"), None);
        domains.release("app.example.org");
        assert_eq!(means("app.example.org"), None);
    }

    #[test]
    fn a_star_is_one_label() {
        for (pattern, name, good) in [
            ("*.a.b", "x.a.b", true),
            ("*.a.b", "*.a.b", true),
            ("*.a.b", "a.b", false),
            ("*.a.b", ".a.b", false),
            ("*.a.b", "x.y.a.b", false),
            ("a.b", "a.b", true),
            ("a.b", "x.a.b", false),
        ] {
            assert_eq!(covers(pattern, name), good, "{pattern} {name}");
        }
    }
}
