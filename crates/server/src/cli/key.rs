//! `dormouse key`: access keys and the accounts that they act for. A running daemon follows by itself.

use super::print;
use crate::config::Config;
use crate::keys::{Keys, KeysError};
use crate::sealing;
use anyhow::{Result, bail};
use clap::Subcommand;
use dormouse_core::AccountId;
use secrecy::ExposeSecret;

/// What to do with access keys.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make an access key and print it, as a section of AWS's credentials file
    ///
    /// An account is there as soon as it has a key. The secret is shown this once.
    Create {
        /// Account that the key acts for: twelve digits [default: the daemon's own]
        #[arg(long, value_parser = account)]
        account: Option<AccountId>,
    },
    /// List the access keys with their accounts
    List,
    /// Delete an access key: requests signed with it are refused from now on
    Delete {
        /// Id of the key, as in AKIA...
        id: String,
    },
}

/// Carries the command out.
pub(super) fn run(config: &Config, command: &KeyCommand) -> Result<()> {
    let data_dir = &config.data_dir;
    match command {
        KeyCommand::Create { account } => {
            let account = account.clone().unwrap_or_else(|| config.account.clone());
            let key = Keys::create(data_dir, account, &sealing::for_writing(config)?)?;
            print(&format!(
                "[{}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
                key.account,
                key.id,
                key.secret.expose_secret()
            ))
        }
        KeyCommand::List => {
            let keys = match Keys::open(data_dir, sealing::for_reading(config)?.into()) {
                Err(KeysError::None(_)) => bail!("there is no access key yet"),
                opened => opened?,
            };
            let line = |key: crate::keys::AccessKey| {
                let ms = i64::try_from(key.created_at.0).unwrap_or_default();
                let made = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
                format!(
                    "{}  {}  {}\n",
                    key.account,
                    key.id,
                    made.strftime("%Y-%m-%d %H:%M:%SZ")
                )
            };
            print(&keys.all().into_iter().map(line).collect::<String>())
        }
        KeyCommand::Delete { id } => Ok(Keys::delete(data_dir, id)?),
    }
}

/// Parses an account.
pub(super) fn account(text: &str) -> Result<AccountId, String> {
    AccountId::parse(text).ok_or_else(|| "an account is twelve digits".to_owned())
}
