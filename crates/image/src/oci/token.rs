//! Tokens of registries: asked for when a registry says so, kept while they live.

use super::challenge::Challenge;
use super::credentials::Identity;
use super::http::{self, Http, HttpError, Question};
use super::progress::Progress;
use super::pull::PullError;
use base64::Engine;
use dormouse_core::limits;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The proofs that registries gave us, by account and repository.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<(String, String), Proof>>);

/// What a request is sent with.
#[derive(Debug, Clone)]
struct Proof {
    header: SecretString,
    until: Instant,
}

/// A token server's answer.
#[derive(Deserialize)]
struct Answer {
    token: Option<SecretString>,
    access_token: Option<SecretString>,
    expires_in: Option<u64>,
}

impl Tokens {
    /// The header to send to this account's registry for this repository, if one is known.
    pub(super) fn header(&self, account: &str, repository: &str) -> Option<HeaderValue> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let proof = tokens.get(&(account.to_owned(), repository.to_owned()))?;
        (proof.until > Instant::now())
            .then(|| header_value(&proof.header))
            .flatten()
    }

    /// Does what a registry asks for, and keeps what comes of it.
    pub(super) async fn obtain(
        &self,
        http: &Http,
        identity: &Identity,
        account: &str,
        repository: &str,
        challenge: &Challenge,
        progress: &dyn Progress,
    ) -> Result<HeaderValue, PullError> {
        let denied = || PullError::Denied {
            server: account.to_owned(),
        };
        let proof = match challenge {
            Challenge::Basic => Proof {
                header: basic(identity).ok_or_else(denied)?,
                until: Instant::now() + limits::REGISTRY_TOKEN_TTL,
            },
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let scope = scope
                    .clone()
                    .unwrap_or_else(|| format!("repository:{repository}:pull"));
                let question = question(realm, service.as_deref(), &scope, identity)?;
                fetch(http, &question, progress).await?.ok_or_else(denied)?
            }
        };
        let header = header_value(&proof.header).ok_or_else(denied)?;
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, proof| proof.until > now);
        if tokens.len() < limits::REGISTRY_TOKENS_MAX {
            tokens.insert((account.to_owned(), repository.to_owned()), proof);
        }
        Ok(header)
    }
}

fn question(
    realm: &str,
    service: Option<&str>,
    scope: &str,
    identity: &Identity,
) -> Result<Question, PullError> {
    let mut url = Url::parse(realm).map_err(|_| HttpError::Address)?;
    let mut headers = HeaderMap::new();
    let fields = service
        .map(|service| ("service", service))
        .into_iter()
        .chain([("scope", scope)]);
    if let Identity::Refresh(token) = identity {
        let mut form = Url::parse("http://form").map_err(|_| HttpError::Address)?;
        form.query_pairs_mut()
            .extend_pairs(fields)
            .extend_pairs([("grant_type", "refresh_token"), ("client_id", "dormouse")])
            .append_pair("refresh_token", token.expose_secret());
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        return Ok(Question {
            method: Method::POST,
            url: url.into(),
            headers,
            body: form.query().map(str::to_owned),
        });
    }
    url.query_pairs_mut().extend_pairs(fields);
    if let Some(header) = basic(identity).as_ref().and_then(header_value) {
        headers.insert(AUTHORIZATION, header);
    }
    Ok(Question {
        method: Method::GET,
        url: url.into(),
        headers,
        body: None,
    })
}

/// None when the token server says no.
async fn fetch(
    http: &Http,
    question: &Question,
    progress: &dyn Progress,
) -> Result<Option<Proof>, PullError> {
    // A token's life begins when it is made, at the earliest when it was asked for.
    let asked = Instant::now();
    let response = http.ask(question, progress).await?;
    if response.status() != StatusCode::OK {
        return Ok(None);
    }
    let body = http::body(response, limits::REGISTRY_ANSWER_BYTES_MAX).await?;
    let Ok(answer) = serde_json::from_slice::<Answer>(&body) else {
        return Ok(None);
    };
    let life = answer
        .expires_in
        .map_or(limits::REGISTRY_TOKEN_TTL, Duration::from_secs);
    Ok(answer.token.or(answer.access_token).map(|token| Proof {
        header: format!("Bearer {}", token.expose_secret()).into(),
        until: asked + life.min(Duration::from_secs(3600)),
    }))
}

fn basic(identity: &Identity) -> Option<SecretString> {
    let Identity::Password { username, password } = identity else {
        return None;
    };
    let text = format!("{username}:{}", password.expose_secret());
    let encoded = base64::engine::general_purpose::STANDARD.encode(text);
    Some(format!("Basic {encoded}").into())
}

/// None for what cannot stand in a header.
fn header_value(secret: &SecretString) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(secret.expose_secret()).ok()?;
    value.set_sensitive(true);
    Some(value)
}
