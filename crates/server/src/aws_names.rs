//! AWS's own host names, for which the daemon stands in: what clients call that were told of no endpoint.

/// The domain of MicroVM endpoints on AWS, whatever `endpoint.domain` is here.
pub(crate) fn endpoints(region: &str) -> String {
    format!("lambda-microvm.{region}.on.aws")
}

/// The control API and STS in a region.
pub(crate) fn services(region: &str) -> [String; 3] {
    [
        format!("lambda.{region}.amazonaws.com"),
        format!("sts.{region}.amazonaws.com"),
        "sts.amazonaws.com".to_owned(),
    ]
}

/// S3 in a region; a bucket may be a label of its own before it.
pub(crate) fn s3(region: &str) -> [String; 2] {
    [
        format!("s3.{region}.amazonaws.com"),
        "s3.amazonaws.com".to_owned(),
    ]
}
