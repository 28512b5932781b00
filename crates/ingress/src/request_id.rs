//! The ids of requests: random UUIDs. They are drawn many at once, as the generator takes as long for one as for many.

use std::cell::RefCell;

use http::HeaderValue;
use uuid::{Builder, Uuid};

use crate::token::random;

const AT_ONCE: usize = 32;

/// Random bytes of this thread, and how many ids can still be made of them.
struct Drawn {
    bytes: [[u8; 16]; AT_ONCE],
    left: usize,
}

thread_local! {
    static DRAWN: RefCell<Drawn> = const {
        RefCell::new(Drawn { bytes: [[0; 16]; AT_ONCE], left: 0 })
    };
}

/// An id that no request has had.
pub(crate) fn next() -> HeaderValue {
    let random = DRAWN.with_borrow_mut(Drawn::take);
    let id = Builder::from_random_bytes(random).into_uuid();
    let mut text = Uuid::encode_buffer();
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text))
        .expect("a UUID is a header value")
}

impl Drawn {
    fn take(&mut self) -> [u8; 16] {
        if self.left == 0 {
            random(self.bytes.as_flattened_mut());
            self.left = AT_ONCE;
        }
        self.left -= 1;
        self.bytes[self.left]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_id_comes_twice() {
        let ids: HashSet<_> = (0..3 * AT_ONCE).map(|_| next()).collect();
        assert_eq!(ids.len(), 3 * AT_ONCE);
        for id in ids {
            let id = Uuid::try_parse(id.to_str().expect("text")).expect("UUID");
            assert_eq!(id.get_version_num(), 4);
        }
    }
}
