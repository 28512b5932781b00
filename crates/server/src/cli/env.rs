//! `dormouse env`: exports for a POSIX shell.

use crate::config::Config;
use crate::daemon::{DaemonFile, replace_file};
use crate::keys::Keys;
use crate::sealing;
use anyhow::{Context, Result, bail};
use dormouse_core::AccountId;
use secrecy::ExposeSecret;
use std::fs;
use std::path::{Path, PathBuf};

/// Where distributions keep the CAs that the system trusts, in one file.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How clients find the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// They are told its address.
    Endpoint,
    /// They call AWS's own host names, through the daemon's `CONNECT` listener.
    Proxy,
}

/// The exports for the daemon of the data directory: with the oldest key of `account`, or of the daemon's own.
pub(super) fn exports(config: &Config, account: Option<&AccountId>, way: Way) -> Result<String> {
    let data_dir = &config.data_dir;
    let daemon = DaemonFile::read(data_dir)?;
    let keys = Keys::open(data_dir, sealing::for_reading(config)?.into())?;
    let key = keys.first_of(account.unwrap_or(&daemon.account));
    let key = match (key, account) {
        (Some(key), _) => key,
        (None, None) => keys.all().remove(0),
        (None, Some(account)) => bail!(
            "account {account} has no access key: make one with `dormouse key create --account {account}`"
        ),
    };
    let bundle = write_bundle(data_dir, &daemon.ca_file, &SYSTEM_CAS.map(Path::new))?;
    let bundle = text(&bundle)?;
    let ca_file = text(&daemon.ca_file)?;
    // A session token or profile of another account would take these keys' place.
    let mut lines = "unset AWS_SESSION_TOKEN AWS_PROFILE\n".to_owned();
    let api_url = daemon.api_url();
    let proxy_url;
    let way = match way {
        Way::Endpoint => vec![("AWS_ENDPOINT_URL", api_url.as_str())],
        Way::Proxy => {
            let addr = daemon.connect_addr.context(
                "the daemon does not serve CONNECT: set `connect.addr` in its configuration, as in \
                 \"127.0.0.1:3128\"",
            )?;
            proxy_url = format!("http://{addr}");
            // Either would lead past the proxy.
            lines.push_str("unset AWS_ENDPOINT_URL NO_PROXY no_proxy\n");
            vec![
                ("HTTPS_PROXY", proxy_url.as_str()),
                ("https_proxy", proxy_url.as_str()),
                ("AWS_CA_BUNDLE", bundle),
            ]
        }
    };
    for (name, value) in way.into_iter().chain([
        ("AWS_ACCESS_KEY_ID", key.id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", key.secret.expose_secret()),
        ("AWS_REGION", &daemon.region),
        ("AWS_DEFAULT_REGION", &daemon.region),
        ("CURL_CA_BUNDLE", bundle),
        ("REQUESTS_CA_BUNDLE", bundle),
        ("SSL_CERT_FILE", bundle),
        ("NODE_EXTRA_CA_CERTS", ca_file),
        ("DORMOUSE_CA_FILE", ca_file),
    ]) {
        lines.push_str(&format!("export {name}={}\n", quote(value)));
    }
    Ok(lines)
}

/// Writes the system's CAs and ours to one file.
fn write_bundle(data_dir: &Path, ca_file: &Path, system: &[&Path]) -> Result<PathBuf> {
    let system = system.iter().find_map(|path| fs::read(path).ok());
    let mut bundle = system.unwrap_or_default();
    if !bundle.is_empty() && !bundle.ends_with(b"\n") {
        bundle.push(b'\n');
    }
    let own = fs::read(ca_file).with_context(|| format!("read {}", ca_file.display()))?;
    bundle.extend(own);
    let path = data_dir.join("ca-bundle.pem");
    if fs::read(&path).ok().as_deref() != Some(&bundle) {
        replace_file(&path, &bundle)?;
    }
    Ok(path)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Quotes a value so that a shell takes it as it is.
fn quote(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@%+,=".contains(&byte);
    match !value.is_empty() && value.bytes().all(plain) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, ServeOverrides};
    use std::process::Command;
    use std::sync::Arc;

    #[test]
    fn a_shell_takes_the_exports_as_they_are() {
        let parent = tempfile::tempdir().unwrap();
        let data_dir = parent.path().join("it's a $HOME `dir`");
        fs::create_dir(&data_dir).unwrap();
        let ca_file = data_dir.join("ca.pem");
        fs::write(&ca_file, "OWN CA\n").unwrap();
        let account = AccountId::parse("000000000000").unwrap();
        let over = Overrides {
            config: None,
            data_dir: Some(data_dir.clone()),
        };
        let config = Config::load(&over, &ServeOverrides::default()).unwrap();
        let sealer = Arc::new(sealing::for_daemon(&config).unwrap());
        let keys = Keys::open_or_create(&data_dir, &account, Arc::clone(&sealer)).unwrap();
        let first = keys.first_of(&account).unwrap();
        let other = AccountId::parse("000000000001").unwrap();
        Keys::create(&data_dir, other, &sealer).unwrap();
        let mut daemon = DaemonFile {
            pid: 1,
            api_addr: "0.0.0.0:9400".parse().unwrap(),
            ingress_addr: "127.0.0.1:9443".parse().unwrap(),
            connect_addr: None,
            region: "us-east-1".to_owned(),
            account,
            sealing_key_file: None,
            ca_file: ca_file.clone(),
        };
        daemon.write(&data_dir).unwrap();

        let script = r#"eval "$1"; env -0; cat "$CURL_CA_BUNDLE""#;
        let output = Command::new("sh")
            .args([
                "-ec",
                script,
                "sh",
                &exports(&config, None, Way::Endpoint).unwrap(),
            ])
            .env("AWS_SESSION_TOKEN", "of another account")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        for (name, value) in [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9400"),
            ("AWS_ACCESS_KEY_ID", &first.id),
            ("AWS_SECRET_ACCESS_KEY", first.secret.expose_secret()),
            ("AWS_REGION", "us-east-1"),
            ("DORMOUSE_CA_FILE", ca_file.to_str().unwrap()),
        ] {
            assert!(
                printed.contains(&format!("{name}={value}\0")),
                "{name}: {printed}"
            );
        }
        assert!(!printed.contains("AWS_SESSION_TOKEN"), "{printed}");
        assert!(printed.ends_with("OWN CA\n"), "{printed}");

        let error = exports(&config, None, Way::Proxy).unwrap_err().to_string();
        assert!(error.contains("connect.addr"), "{error}");
        daemon.connect_addr = Some("127.0.0.1:3128".parse().unwrap());
        daemon.write(&data_dir).unwrap();
        let lines = exports(&config, None, Way::Proxy).unwrap();
        assert!(
            lines.contains("export HTTPS_PROXY=http://127.0.0.1:3128\n"),
            "{lines}"
        );
        assert!(lines.contains("unset AWS_ENDPOINT_URL"), "{lines}");
    }

    #[test]
    fn a_bundle_has_the_systems_authorities_and_ours() {
        let data = tempfile::tempdir().unwrap();
        let (system, own) = (data.path().join("system"), data.path().join("own"));
        fs::write(&system, "SYSTEM").unwrap();
        fs::write(&own, "OWN\n").unwrap();
        let nowhere = data.path().join("nowhere");
        let bundle = write_bundle(data.path(), &own, &[&nowhere, &system]).unwrap();
        assert_eq!(fs::read_to_string(bundle).unwrap(), "SYSTEM\nOWN\n");
    }
}
