use super::*;
use dormouse_ingress::VmLimits;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

fn load(toml: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), toml).unwrap();
    let over = Overrides {
        config: Some(file.path().to_owned()),
        data_dir: None,
    };
    Config::load(&over, &ServeOverrides::default())
}

fn error_chain(toml: &str) -> String {
    let error = load(toml).unwrap_err();
    format!("{:#}", anyhow::Error::new(error))
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = load("").unwrap();
    assert_eq!(config.data_dir, Path::new("/var/lib/dormouse"));
    assert_eq!(config.api_addr.to_string(), "127.0.0.1:9400");
    assert_eq!(config.ingress_addr.to_string(), "127.0.0.1:9443");
    assert_eq!(config.endpoint_domain, "lambda-microvm.us-east-1.localhost");
    assert!(matches!(config.s3, S3Source::Embedded));
}

#[test]
fn every_key_has_its_place() {
    let config = load(
        r#"
        data_dir = "/srv/dormouse"
        api_addr = "0.0.0.0:1"
        ingress_addr = "[::]:2"
        region = "eu-north-1"
        account = "123456789012"
        accel = "tcg"
        metrics_addr = "127.0.0.1:9401"
        assets_dir = "/opt/assets"
        [endpoint]
        domain = "vm.example.com"
        port = 443
        plain_addr = "127.0.0.1:9080"
        [tls]
        certificate = "/etc/tls.pem"
        key = "/etc/tls.key"
        [tls.domains."app.example.org"]
        certificate = "/etc/app.pem"
        key = "/etc/app.key"
        [secrets]
        key_file = "/etc/dormouse/sealing.key"
        [tokens]
        rotate_days = 7
        [dns]
        addr = "0.0.0.0:53"
        addresses = ["192.0.2.1", "2001:db8::1"]
        [connect]
        addr = "[::1]:3128"
        [s3]
        endpoint = "https://s3.example.com"
        access_key_id = "AKIA"
        secret_access_key = "hush"
        [s3.buckets]
        code = "111111111111"
        [network]
        slots = "10.9.0.0/16"
        warm_slots = 0
        dns = ["9.9.9.9", "[2620:fe::fe]:5353"]
        block = ["100.64.0.0/10"]
        allow = ["10.1.2.3/32"]
        [build]
        concurrency = 3
        [quotas]
        images = 100
        versions_per_image = 50
        concurrent_builds = 5
        memory_mib = 409600
        calls_per_second = 100
        [quotas.calls.RunMicrovm]
        per_second = 5
        burst = 5
        [quotas.calls.SuspendMicrovm]
        per_second = 2
        [limits]
        in_flight = "off"
        requests_per_second = 500
        response_timeout_s = 3600
        [limits.memory.512]
        in_flight = 4
        requests_per_second = "aws"
        bandwidth_mb_per_second = "off"
        [capacity]
        disk_free_min_bytes = 10737418240
        [log]
        format = "json"
        access = false
        audit = false
        "#,
    )
    .unwrap();
    assert_eq!(config.account.as_str(), "123456789012");
    assert_eq!(config.accel, Accel::Tcg);
    assert_eq!(config.builds_at_once, 3);
    assert_eq!(config.plain_addr.unwrap().to_string(), "127.0.0.1:9080");
    assert_eq!(config.connect_addr.unwrap().to_string(), "[::1]:3128");
    assert_eq!(config.dns.as_ref().unwrap().addresses.len(), 2);
    assert_eq!(config.tls.domains.len(), 1);
    assert_eq!(config.token_rotation.as_secs(), 7 * 86_400);
    assert_eq!(config.capacity.disk_free_min_bytes, 10 << 30);
    assert_eq!(config.capacity.memory_free_min_bytes, 256 << 20);
    let quotas = &config.quotas;
    assert_eq!((quotas.images, quotas.versions_per_image), (100, 50));
    assert_eq!((quotas.concurrent_builds, quotas.memory_mib), (5, 409_600));
    let (calls, own) = (&quotas.calls, &quotas.calls.by_operation);
    assert_eq!((calls.default.per_second, calls.default.burst), (100, 200));
    assert_eq!(
        (own["RunMicrovm"].per_second, own["RunMicrovm"].burst),
        (5, 5)
    );
    assert_eq!(own["SuspendMicrovm"].burst, 4);
    assert_eq!(config.network.dns[0].to_string(), "9.9.9.9:53");
    assert!(!config.log.access && !config.log.audit && config.metrics_addr.is_some());
    let small = config.limits.of(512);
    assert_eq!(limits(small), (Some(4), Some(10), None));
    assert_eq!(
        limits(config.limits.of(2048)),
        (None, Some(500), Some(4_000_000))
    );
    assert_eq!(
        config.limits.response_timeout,
        Some(Duration::from_secs(3600))
    );
    let S3Source::Outside(s3) = &config.s3 else {
        panic!("{:?}", config.s3);
    };
    assert_eq!(s3.region, "eu-north-1");
    assert_eq!(s3.owner("code").as_str(), "111111111111");
    assert_eq!(s3.owner("other"), &config.account);
    let said = format!("{config:?}");
    assert!(!said.contains("hush"), "{said}");
}

fn limits(limits: VmLimits) -> (Option<u32>, Option<u32>, Option<u64>) {
    (
        limits.in_flight.map(NonZeroU32::get),
        limits.requests_per_second.map(NonZeroU32::get),
        limits.bytes_per_second.map(NonZeroU64::get),
    )
}

#[test]
fn an_endpoint_carries_what_it_does_on_aws_unless_told_otherwise() {
    let config = load("").unwrap();
    assert!(config.log.access && config.log.audit && config.metrics_addr.is_none());
    assert_eq!(config.limits.response_timeout, None);
    for (mib, in_flight, a_second, mb) in [
        (512, 8, 10, 1),
        (1024, 16, 20, 2),
        (2048, 32, 40, 4),
        (4096, 64, 80, 8),
        (8192, 128, 160, 16),
    ] {
        let expected = (Some(in_flight), Some(a_second), Some(mb * 1_000_000));
        assert_eq!(limits(config.limits.of(mib)), expected);
    }
    let off = "[limits]\nin_flight = \"off\"\nrequests_per_second = \"off\"\nbandwidth_mb_per_second = \"off\"";
    assert_eq!(load(off).unwrap().limits.of(512), VmLimits::default());
}

#[test]
fn the_command_line_wins_over_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "data_dir = \"/file\"\napi_addr = \"127.0.0.1:1\"\naccel = \"kvm\"",
    )
    .unwrap();
    let over = Overrides {
        config: Some(file.path().to_owned()),
        data_dir: Some("relative".into()),
    };
    let serve = ServeOverrides {
        api_addr: Some("127.0.0.1:2".parse().unwrap()),
        ..ServeOverrides::default()
    };
    let config = Config::load(&over, &serve).unwrap();
    assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("relative"));
    assert_eq!(config.api_addr.port(), 2);
    assert_eq!(config.accel, Accel::Kvm);
}

#[test]
fn a_mistake_is_named_with_its_remedy() {
    for (toml, key, remedy) in [
        ("account = \"12\"", "account", "twelve digits"),
        ("region = \"US east\"", "region", "us-east-1"),
        ("[endpoint]\ndomain = \".x\"", "endpoint.domain", "labels"),
        ("[endpoint]\nport = 0", "endpoint.port", "443"),
        (
            "[endpoint]\nplain_addr = \"0.0.0.0:80\"",
            "endpoint.plain_addr",
            "loopback",
        ),
        (
            "[connect]\naddr = \"192.0.2.1:1\"",
            "connect.addr",
            "loopback",
        ),
        ("[tls]\ncertificate = \"/x\"", "`tls`", "both"),
        (
            "[tls.acme]\ndirectory_url = \"http://x\"",
            "tls.acme.directory_url",
            "https://",
        ),
        (
            "[tls.acme]\ndirectory_url = \"https://x\"",
            "tls.acme.hook",
            "[dns]",
        ),
        (
            "[tls]\ncertificate = \"/x\"\nkey = \"/x\"\n[tls.acme]\nhook = \"/x\"",
            "tls.acme",
            "leave out",
        ),
        (
            "[tls.domains.\"x\"]\ncertificate = \"/x\"\nkey = \"/x\"",
            "tls.domains",
            "app.example.com",
        ),
        (
            "[tokens]\nrotate_days = 0",
            "tokens.rotate_days",
            "1 to 365",
        ),
        ("[dns]\naddresses = [\"192.0.2.1\"]", "dns.addr", "5353"),
        (
            "ingress_addr = \"0.0.0.0:1\"\n[dns]\naddr = \"127.0.0.1:5353\"",
            "dns.addresses",
            "192.0.2.1",
        ),
        ("[s3]\nregion = \"us-east-1\"", "`s3`", "access_key_id"),
        ("[s3]\nendpoint = \"ftp://x\"", "s3.endpoint", "https://"),
        (
            "[s3]\naccess_key_id = \"a\"\nsecret_access_key = \"b\"\nbuckets = { code = \"me\" }",
            "s3.buckets",
            "123456789012",
        ),
        (
            "[network]\nblock = [\"10.0.0.1/8\"]",
            "network.block",
            "prefix",
        ),
        ("[network]\ndns = [\"resolver\"]", "network.dns", "9.9.9.9"),
        (
            "[network]\nwarm_slots = 100000",
            "network.warm_slots",
            "small",
        ),
        ("[build]\nconcurrency = 0", "build.concurrency", "1 to 64"),
        ("[quotas]\nimages = 0", "quotas.images", "at least 1"),
        (
            "[quotas]\nversions_per_image = 2000",
            "quotas.versions_per_image",
            "1000",
        ),
        (
            "[quotas.calls.RunVm]\nper_second = 5",
            "RunVm",
            "quotas.calls.RunMicrovm",
        ),
        (
            "[quotas]\ncalls_per_second = 0",
            "calls_per_second",
            "burst",
        ),
        ("[limits]\nin_flight = 0", "line 2", "at least 1"),
        ("[limits.memory.3000]", "limits.memory", "2048"),
        ("data_dri = \"/x\"", "data_dri", "data_dir"),
        ("accel = \"fast\"", "fast", "auto"),
    ] {
        let said = error_chain(toml);
        assert!(
            said.contains(key) && said.contains(remedy),
            "{toml}: {said}"
        );
    }
    let said = error_chain("[s3]\nsecret_access_key = \"hush\"\nacces_key_id = \"AKIA\"");
    assert!(
        !said.contains("hush"),
        "a parse error quotes a secret: {said}"
    );
}

#[test]
fn an_endpoint_shows_its_port_unless_it_is_that_of_https() {
    let id = EndpointId::new(uuid::Uuid::from_u128(1));
    let mut config = load("").unwrap();
    let host = format!("{id}.lambda-microvm.us-east-1.localhost");
    assert_eq!(config.endpoint(&id, 9443), format!("{host}:9443"));
    assert_eq!(config.endpoint(&id, 443), host);
    config.endpoint_port = Some(443);
    assert_eq!(config.endpoint(&id, 9443), host);
}
