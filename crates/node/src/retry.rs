//! Work that is tried until it is done.

use dormouse_core::limits;
use tokio::time::sleep;

/// Tries until it works, ever less often; `told` hears of each failure.
pub(crate) async fn until_done<T, E, F>(attempt: impl Fn() -> F, told: impl Fn(&E)) -> T
where
    F: Future<Output = Result<T, E>>,
{
    let mut pause = limits::RETRY_FIRST;
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => told(&error),
        }
        sleep(pause).await;
        pause = (pause * 2).min(limits::RETRY_LAST);
    }
}
