//! A wildcard certificate from an ACME server (RFC 8555), proven by DNS-01 and renewed by itself.
//!
//! ```text
//! stored? -> wait until two thirds of its life are over -> order -> challenge into DNS -> CSR -> store, serve
//!              ^                                                                             |
//!              +----------------------- a failure: again, ever later ------------------------+
//! ```
//!
//! A program of the operator's, the hook, puts the challenge into DNS; it is called as
//! `hook present _acme-challenge.DOMAIN VALUE`, and with `cleanup` in place of `present` afterwards. The
//! daemon's own DNS answerer has the value as well.

mod hook;
mod http;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use dormouse_core::limits;
use dormouse_secrets::{Sealer, SecretError};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use secrecy::zeroize::Zeroizing;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::certificate::{CertificateError, CertificateFiles, Checked, Content, seconds};
use crate::resolver::Given;
use crate::token::random;
use dormouse_core::chain;

/// The type of an ACME error that says that the server has forgotten the account.
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// What the account's file is sealed as.
const ACCOUNT: &str = "acme-account";
/// What the file of key and certificate is sealed as.
const CERTIFICATE: &str = "acme-certificate";

/// What an operator says about the ACME server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// Where the server says what it offers; `https://`.
    pub directory_url: String,
    /// Whom the server may write to, as in `mailto:admin@example.com`.
    pub contact: Vec<String>,
    /// The program that puts challenges into DNS; none where the daemon's own answerer is asked.
    pub hook: Option<PathBuf>,
    /// CAs that the server's own certificate is judged by, as PEM; none for those of the system.
    pub ca_file: Option<PathBuf>,
}

/// Values that `_acme-challenge` below the endpoint domain has at the moment.
#[derive(Debug, Default)]
pub struct Challenges(RwLock<Vec<String>>);

impl Challenges {
    /// The values now.
    #[must_use]
    pub fn values(&self) -> Vec<String> {
        let values = self.0.read().unwrap_or_else(PoisonError::into_inner);
        values.clone()
    }

    fn add(&self, value: &str) {
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        values.push(value.to_owned());
    }

    fn remove(&self, value: &str) {
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        values.retain(|known| known != value);
    }
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum AcmeError {
    #[error("`tls.acme.ca_file` {path} holds no usable CA")]
    CaFile { path: PathBuf },
    #[error("the ACME server refuses or does not answer")]
    Server(#[from] instant_acme::Error),
    #[error("the ACME server offers no DNS-01 challenge")]
    NoDns,
    #[error("the ACME server does not accept the challenge at {record}: {reason}")]
    Unproven { record: String, reason: String },
    #[error("the hook failed")]
    Hook(#[from] hook::HookError),
    #[error("its files")]
    File(#[from] SecretError),
    #[error("no key or request for a certificate could be made")]
    Request(#[from] rcgen::Error),
    #[error("the certificate that the ACME server issued is of no use")]
    Useless(#[from] CertificateError),
    #[error("it took longer than {} s", limits::ACME_TIMEOUT.as_secs())]
    Timeout,
}

/// The account as it is stored.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    directory_url: String,
    credentials: AccountCredentials,
}

/// Keeps one wildcard certificate from an ACME server.
pub struct Acme {
    config: AcmeConfig,
    domain: String,
    folder: PathBuf,
    sealer: Arc<Sealer>,
    challenges: Arc<Challenges>,
    given: Arc<Given>,
    /// The second at which the next certificate is ordered.
    due_s: i64,
}

impl Acme {
    /// A certificate for what `given` is for, all names directly below `domain`. Account and certificate are
    /// kept in `folder`, sealed; one that is there and still good is served from now on.
    pub fn open(
        config: AcmeConfig,
        domain: &str,
        folder: &Path,
        sealer: Arc<Sealer>,
        challenges: Arc<Challenges>,
        given: Arc<Given>,
    ) -> Result<Self, SecretError> {
        let now = SystemTime::now();
        let mut acme = Self {
            config,
            domain: domain.to_owned(),
            folder: folder.to_owned(),
            sealer,
            challenges,
            given,
            due_s: seconds(now),
        };
        acme.sealer.adopt(ACCOUNT, &acme.account_file())?;
        acme.sealer.adopt(CERTIFICATE, &acme.certificate_file())?;
        if let Some(text) = acme.sealer.read(CERTIFICATE, &acme.certificate_file())?
            && let Ok(checked) = acme.checked(text, now)
        {
            acme.due_s = renewal_s(&checked, random_part());
            acme.given.put(checked.key);
        }
        Ok(acme)
    }

    /// Orders a new certificate whenever it is time, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        while wait_until(self.due_s, &stop).await {
            match self.obtain(&stop).await {
                None => return,
                Some(Ok(checked)) => {
                    failures = 0;
                    self.due_s = renewal_s(&checked, random_part()).max(halfway_s(&checked));
                    self.given.put(checked.key);
                    tracing::info!(domain = self.domain, "the ACME server issued a certificate");
                }
                Some(Err(error)) => {
                    failures += 1;
                    let pause = pause(failures, random_part());
                    self.due_s = seconds(SystemTime::now() + pause);
                    tracing::warn!(
                        error = chain(&error),
                        again_in_s = pause.as_secs(),
                        "no certificate from the ACME server: check `tls.acme`, its hook and the DNS of \
                         the domain; the last certificate stays"
                    );
                }
            }
        }
    }

    /// Orders a certificate and stores it; nothing when `stop` came first. Challenges are withdrawn
    /// however it ends.
    async fn obtain(&self, stop: &CancellationToken) -> Option<Result<Checked, AcmeError>> {
        let mut presented = Vec::new();
        let work = timeout(limits::ACME_TIMEOUT, self.order(&mut presented));
        let outcome = stop.run_until_cancelled(work).await;
        for value in presented {
            self.challenges.remove(&value);
            if let Err(error) = self.call_hook("cleanup", &value).await {
                tracing::warn!(
                    error = chain(&error),
                    record = self.record(),
                    "an ACME challenge stays in DNS: remove it"
                );
            }
        }
        outcome.map(|outcome| outcome.unwrap_or(Err(AcmeError::Timeout)))
    }

    async fn order(&self, presented: &mut Vec<String>) -> Result<Checked, AcmeError> {
        let account = self.account().await?;
        let name = Identifier::Dns(self.name());
        let mut order = match account.new_order(&NewOrder::new(&[name])).await {
            Ok(order) => order,
            Err(error) => return Err(self.forgotten(error)),
        };
        self.prove(&mut order, presented).await?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new([self.name()])?;
        params.distinguished_name = DistinguishedName::new();
        order
            .finalize_csr(params.serialize_request(&key)?.der())
            .await?;
        let chain = order.poll_certificate(&polling()).await?;
        self.store(&chain, &key)
    }

    /// Answers the challenges of an order.
    async fn prove(&self, order: &mut Order, presented: &mut Vec<String>) -> Result<(), AcmeError> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let challenge = authorization.challenge(ChallengeType::Dns01);
            let mut challenge = challenge.ok_or(AcmeError::NoDns)?;
            let value = challenge.key_authorization().dns_value();
            presented.push(value.clone());
            self.challenges.add(&value);
            self.call_hook("present", &value).await?;
            challenge.set_ready().await?;
        }
        if order.poll_ready(&polling()).await? == OrderStatus::Ready {
            return Ok(());
        }
        Err(AcmeError::Unproven {
            record: self.record(),
            reason: refusal(order).await,
        })
    }

    /// The account at this server, made and stored if there is none yet.
    async fn account(&self) -> Result<Account, AcmeError> {
        let path = self.account_file();
        let stored = self.sealer.read(ACCOUNT, &path)?;
        // An account of another server, or none at all, is replaced: a new account costs nothing.
        let stored = stored.and_then(|text| serde_json::from_slice::<Stored>(&text).ok());
        let stored = stored.filter(|stored| stored.directory_url == self.config.directory_url);
        let https = http::Https::new(self.config.ca_file.as_deref());
        let https = https.map_err(|path| AcmeError::CaFile { path })?;
        let builder = Account::builder_with_http(Box::new(https));
        if let Some(stored) = stored {
            return Ok(builder.from_credentials(stored.credentials).await?);
        }
        let contact: Vec<&str> = self.config.contact.iter().map(String::as_str).collect();
        let account = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let directory_url = self.config.directory_url.clone();
        let created = builder.create(&account, directory_url.clone(), None);
        let (account, credentials) = created.await?;
        let stored = Stored {
            directory_url,
            credentials,
        };
        let text = serde_json::to_vec_pretty(&stored).map_err(instant_acme::Error::from)?;
        self.sealer.write(ACCOUNT, &path, &Zeroizing::new(text))?;
        Ok(account)
    }

    /// A server that does not know the account any more gets a new one at the next attempt.
    fn forgotten(&self, error: instant_acme::Error) -> AcmeError {
        if let instant_acme::Error::Api(problem) = &error
            && problem.r#type.as_deref() == Some(NO_ACCOUNT)
        {
            let path = self.account_file();
            if let Err(source) = std::fs::remove_file(&path) {
                return SecretError::Write { path, source }.into();
            }
        }
        error.into()
    }

    /// Stores key and certificate in one file, so that they are never of two orders.
    fn store(&self, chain: &str, key: &KeyPair) -> Result<Checked, AcmeError> {
        let key = Zeroizing::new(key.serialize_pem());
        let text = Zeroizing::new([key.as_bytes(), chain.as_bytes()].concat());
        let path = self.certificate_file();
        self.sealer.write(CERTIFICATE, &path, &text)?;
        Ok(self.checked(text, SystemTime::now())?)
    }

    /// What the certificate's file holds, if it is good at the moment `now`.
    fn checked(
        &self,
        text: Zeroizing<Vec<u8>>,
        now: SystemTime,
    ) -> Result<Checked, CertificateError> {
        let path = self.certificate_file();
        let files = CertificateFiles {
            certificate: path.clone(),
            key: path,
        };
        files.check(&Content::of_one(text), &self.name(), now)
    }

    async fn call_hook(&self, action: &str, value: &str) -> Result<(), hook::HookError> {
        match &self.config.hook {
            Some(program) => hook::call(program, action, &self.record(), value).await,
            None => Ok(()),
        }
    }

    fn name(&self) -> String {
        format!("*.{}", self.domain)
    }

    fn record(&self) -> String {
        format!("_acme-challenge.{}", self.domain)
    }

    fn account_file(&self) -> PathBuf {
        self.folder.join("account.json")
    }

    fn certificate_file(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acme")
            .field("config", &self.config)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

fn polling() -> RetryPolicy {
    RetryPolicy::new().timeout(limits::ACME_TIMEOUT)
}

/// What the server says about a challenge that it did not accept.
async fn refusal(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let mut errors = state.challenges.iter().filter_map(|c| c.error.as_ref());
        if let Some(problem) = errors.next() {
            return problem.to_string();
        }
    }
    "it gives no reason".to_owned()
}

/// The second at which a certificate's successor is ordered: about two thirds of its life, so that many
/// daemons do not come at once.
fn renewal_s(checked: &Checked, random: f64) -> i64 {
    let (begin_s, end_s) = checked.validity_s;
    let part = 2.0 / 3.0 + random / 30.0;
    begin_s + ((end_s - begin_s) as f64 * part) as i64
}

/// The second at which half of what is left of a certificate's life is over. One that was old when it came
/// is not ordered anew at once, again and again.
fn halfway_s(checked: &Checked) -> i64 {
    let now_s = seconds(SystemTime::now());
    now_s + (checked.validity_s.1 - now_s) / 2
}

/// How long to wait after so many failures in a row: ever longer, and not all daemons equally long.
fn pause(failures: u32, random: f64) -> Duration {
    let doubled = limits::ACME_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled
        .min(limits::ACME_PAUSE_MAX)
        .mul_f64(0.75 + random / 2.0)
}

/// Waits for a second of the wall clock, which may be set meanwhile; false when `stop` came first.
async fn wait_until(second: i64, stop: &CancellationToken) -> bool {
    loop {
        let left = u64::try_from(second - seconds(SystemTime::now())).unwrap_or(0);
        let step = Duration::from_secs(left).min(limits::ACME_CLOCK_CHECK);
        if stop.run_until_cancelled(sleep(step)).await.is_none() {
            return false;
        }
        if seconds(SystemTime::now()) >= second {
            return true;
        }
    }
}

/// A number from 0 to 1.
fn random_part() -> f64 {
    let mut bytes = [0; 4];
    random(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_waited_out_ever_longer_and_not_for_ever() {
        assert_eq!(pause(1, 0.5), limits::ACME_PAUSE);
        assert_eq!(pause(2, 0.5), limits::ACME_PAUSE * 2);
        for failures in [12, 40, u32::MAX] {
            assert_eq!(pause(failures, 0.5), limits::ACME_PAUSE_MAX);
        }
        assert!(pause(3, 0.0) < pause(3, 1.0));
    }

    #[tokio::test]
    async fn a_wait_for_the_past_is_none_and_a_stop_ends_one() {
        let stop = CancellationToken::new();
        assert!(wait_until(0, &stop).await);
        stop.cancel();
        assert!(!wait_until(i64::MAX, &stop).await);
    }
}
