//! A bucket before the host's name, as in `code.s3.us-east-1.amazonaws.com`. At any other host it is the
//! first part of the path.

use crate::aws_names;
use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

/// The names of S3.
#[derive(Debug, Clone)]
pub(super) struct Hosts([String; 2]);

impl Hosts {
    pub(super) fn new(region: &str) -> Self {
        Self(aws_names::s3(region))
    }

    /// The bucket that a host names: an empty one for S3 itself, none for a host of another service. The host
    /// may have a port.
    pub(super) fn bucket<'a>(&self, host: &'a str) -> Option<&'a str> {
        let host = host.split_once(':').map_or(host, |(name, _)| name);
        self.0.iter().find_map(|name| {
            let before = host.strip_suffix(name.as_str())?;
            match before {
                "" => Some(""),
                _ => before.strip_suffix('.').filter(|bucket| !bucket.is_empty()),
            }
        })
    }
}

impl S3Host for Hosts {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let virtual_host = VirtualHost::new(host);
        Ok(match self.bucket(host) {
            None | Some("") => virtual_host,
            Some(bucket) => virtual_host.with_bucket(bucket),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_may_stand_before_the_name_of_s3() {
        let hosts = Hosts::new("us-east-1");
        for (host, bucket) in [
            ("s3.us-east-1.amazonaws.com", Some("")),
            ("s3.amazonaws.com:443", Some("")),
            ("code.s3.us-east-1.amazonaws.com", Some("code")),
            ("code.s3.amazonaws.com:443", Some("code")),
            ("my.code.s3.us-east-1.amazonaws.com", Some("my.code")),
            ("s3.s3.amazonaws.com", Some("s3")),
            ("xs3.amazonaws.com", None),
            (".s3.amazonaws.com", None),
            ("s3.eu-north-1.amazonaws.com", None),
            ("lambda.us-east-1.amazonaws.com", None),
            ("127.0.0.1:9400", None),
            ("", None),
        ] {
            assert_eq!(hosts.bucket(host), bucket, "{host}");
        }
    }
}
