//! PAX records: what an entry says of itself beyond its fixed header.
//!
//! Read here rather than with the tar crate, which cuts records at line ends: a capability's bytes may hold one.

use dormouse_core::limits;

/// What is kept of an entry's records.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds since the Unix epoch.
    pub(super) mtime: Option<(i64, u32)>,
    /// Those that are kept, by name.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A sparse file in one of GNU tar's PAX forms.
    pub(super) sparse: Option<Sparse>,
}

/// GNU tar's description of a sparse file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    /// Size with its holes, in bytes.
    pub(super) real_size: Option<u64>,
    /// Form 1.x: the map stands before the data.
    pub(super) map_in_data: bool,
    /// Forms 0.x: offsets and lengths in turn.
    pub(super) map: Vec<u64>,
}

const DAMAGED: &str = "damaged PAX records";
const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// An ext4 inode keeps its extended attributes in one block, after its header.
const XATTR_BYTES_MAX: usize = 4096 - 36;

impl Pax {
    /// Reads records, or says what is wrong with them.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        let mut xattr_room = XATTR_BYTES_MAX;
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or(DAMAGED)?;
            match key.strip_prefix(XATTR) {
                Some(name) => pax.take_xattr(name, value, &mut xattr_room)?,
                None => pax.take(key, value).ok_or(DAMAGED)?,
            }
            data = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            key => {
                if let Some(field) = key.strip_prefix(SPARSE) {
                    self.take_sparse(field, value)?;
                }
            }
        }
        Some(())
    }

    /// Others would mean something to the host while the files lie there: `trusted.*` to an overlay,
    /// `security.selinux` to its policy.
    fn take_xattr(
        &mut self,
        name: &[u8],
        value: &[u8],
        room: &mut usize,
    ) -> Result<(), &'static str> {
        if name == b"security.capability" || name.starts_with(b"user.") {
            // Those that are replaced count too: there may be tens of thousands, each of which is looked for.
            *room = room
                .checked_sub(on_disk(name, value))
                .ok_or("an entry's extended attributes are too large for ext4")?;
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
        }
        Ok(())
    }

    fn take_sparse(&mut self, field: &[u8], value: &[u8]) -> Option<()> {
        let sparse = self.sparse.get_or_insert_default();
        match field {
            b"major" => sparse.map_in_data = number(value)? == 1,
            b"name" => sparse.name = Some(value.to_vec()),
            b"size" | b"realsize" => sparse.real_size = Some(number(value)?),
            b"offset" | b"numbytes" => sparse.map.push(number(value)?),
            b"map" => {
                let numbers = value.split(|b| *b == b',').map(number);
                sparse.map = numbers.collect::<Option<_>>()?;
            }
            _ => {}
        }
        (sparse.map.len() <= 2 * limits::TAR_SEGMENTS_MAX).then_some(())
    }
}

/// What an extended attribute takes of its inode's block.
fn on_disk(name: &[u8], value: &[u8]) -> usize {
    const ENTRY: usize = 16;
    let padded = |length: usize| length.next_multiple_of(4);
    ENTRY + padded(name.len()) + padded(value.len())
}

/// Cuts `LENGTH KEY=VALUE\n` off; the length counts all of it.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    const LENGTH_DIGITS_MAX: usize = 10;
    let space = data
        .iter()
        .take(LENGTH_DIGITS_MAX + 1)
        .position(|b| *b == b' ')?;
    let length = usize::try_from(number(&data[..space])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

/// A plain decimal number.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// Seconds, perhaps with a sign and a fraction.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut nanos = 0;
    for index in 0..9 {
        let digit = fraction.as_bytes().get(index).copied().unwrap_or(b'0');
        nanos = nanos * 10 + u32::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
    }
    let seconds: i64 = seconds.parse().ok()?;
    // Before the epoch the fraction counts backwards; whole seconds are near enough there.
    Some((seconds, if seconds < 0 { 0 } else { nanos }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let length = (1..10)
            .map(|digits| body + digits)
            .find(|n| n.to_string().len() + body == *n);
        let mut line = format!("{} {key}=", length.unwrap()).into_bytes();
        line.extend_from_slice(value);
        line.push(b'\n');
        line
    }

    #[test]
    fn values_may_hold_any_byte() {
        let capability = b"\x01\0\0\x02\x0a\x0a\0\0=\0";
        let mut data = line("path", b"a\nb=c");
        data.extend(line("SCHILY.xattr.security.capability", capability));
        data.extend(line("SCHILY.xattr.trusted.overlay.opaque", b"y"));
        data.extend(line("SCHILY.xattr.security.selinux", b"x"));
        data.extend(line("SCHILY.xattr.user.note", b"1"));
        data.extend(line("SCHILY.xattr.user.note", b"2"));
        data.extend(line("mtime", b"1700000000.25"));
        data.extend(line("uid", b"70000"));
        let pax = Pax::parse(&data).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb=c"[..]));
        assert_eq!(
            pax.xattrs,
            [
                (b"security.capability".to_vec(), capability.to_vec()),
                (b"user.note".to_vec(), b"2".to_vec())
            ]
        );
        assert_eq!(pax.mtime, Some((1_700_000_000, 250_000_000)));
        assert_eq!(pax.uid, Some(70_000));
    }

    #[test]
    fn what_no_inode_can_hold_is_refused_at_once() {
        let too_large = Err("an entry's extended attributes are too large for ext4");
        let many = (0..40_000).flat_map(|n| line(&format!("SCHILY.xattr.user.{n}"), b""));
        assert_eq!(Pax::parse(&many.collect::<Vec<_>>()), too_large);
        let same = line("SCHILY.xattr.user.a", b"").repeat(40_000);
        assert_eq!(Pax::parse(&same), too_large);
        let large = line("SCHILY.xattr.user.a", &[b'x'; XATTR_BYTES_MAX]);
        assert_eq!(Pax::parse(&large), too_large);
        let fits = line("SCHILY.xattr.user.a", &[b'x'; 4000]);
        assert_eq!(Pax::parse(&fits).unwrap().xattrs.len(), 1);
    }

    #[test]
    fn damaged_records_are_refused() {
        let bad: [&[u8]; 10] = [
            b"x",
            b"6 a=b",
            b"99999999999999 a=b\n",
            b"5 a=b\n",
            b"7 a=b\nx",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"5 ab\n",
            b"11 size=-1\n",
            b"13 size=1e10\n",
        ];
        for data in bad {
            assert_eq!(
                Pax::parse(data),
                Err(DAMAGED),
                "{:?}",
                String::from_utf8_lossy(data)
            );
        }
        assert_eq!(time(b"12.x"), None);
        assert_eq!(time(b"-1.5"), Some((-1, 0)));
    }
}
