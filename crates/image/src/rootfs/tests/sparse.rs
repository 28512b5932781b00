//! Files with holes, in each way that tars have them.

use super::*;

const MIB: usize = 1 << 20;

/// 3 MiB of which the second is data.
fn expected() -> Vec<u8> {
    let mut content = vec![0; 3 * MIB];
    content[MIB..2 * MIB].fill(7);
    content
}

fn assert_sparse(layer: Layer) {
    let lab = Lab::new(&[layer.end()]);
    lab.unpack().unwrap();
    let path = lab.out().join("file");
    assert!(fs::read(&path).unwrap() == expected());
    let allocated = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(
        (MIB as u64..2 * MIB as u64).contains(&allocated),
        "{allocated}"
    );
}

fn gnu(parts: &[(u64, u64)], real_size: u64, data: &[u8]) -> Layer {
    let mut header = header(EntryType::GNUSparse, b"file", b"", data.len());
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(real_size);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(parts) {
        slot.set_offset(*offset);
        slot.set_length(*length);
    }
    gnu.set_is_extended(parts.len() > 4);
    header.set_cksum();
    let mut layer = Layer::new();
    layer.0.extend(header.as_bytes());
    for (number, chunk) in parts.get(4..).unwrap_or_default().chunks(21).enumerate() {
        let mut block = tar::GnuExtSparseHeader::new();
        for (slot, (offset, length)) in block.sparse.iter_mut().zip(chunk) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        block.set_is_extended(parts.len() - 4 > 21 * (number + 1));
        layer.0.extend(block.as_bytes());
    }
    layer.0.extend(data);
    layer.0.resize(layer.0.len().next_multiple_of(512), 0);
    layer
}

#[test]
fn holes_stay_holes() {
    assert_sparse(Layer::new().file("file", &expected()));
    let data = vec![7; MIB];
    let (mib, end) = (MIB as u64, 3 * MIB as u64);
    assert_sparse(gnu(&[(mib, mib), (end, 0)], end, &data));
    let parts: Vec<_> = (0..64).map(|n| (mib + n * 16384, 16384)).collect();
    assert_sparse(gnu(&parts, end, &data));

    let size = end.to_string();
    let map = format!("{MIB},{MIB},{end},0");
    let sparse = [
        ("GNU.sparse.name", &b"file"[..]),
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.map", map.as_bytes()),
    ];
    assert_sparse(
        Layer::new()
            .pax(&sparse)
            .file("GNUSparseFile.1/file", &data),
    );
    let mut with_map = format!("2\n{MIB}\n{MIB}\n{end}\n0\n").into_bytes();
    with_map.resize(512, 0);
    with_map.extend(&data);
    let sparse = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"file"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    assert_sparse(
        Layer::new()
            .pax(&sparse)
            .file("GNUSparseFile.1/file", &with_map),
    );
}

#[test]
fn maps_that_do_not_fit_are_refused() {
    let data = vec![7; 1024];
    for (parts, size) in [
        (&[(0, 2048)][..], 4096),
        (&[(0, 512)], 4096),
        (&[(512, 512), (0, 512)], 4096),
        (&[(0, 512), (256, 512)], 4096),
        (&[(4096, 1024)], 4096),
        (&[(u64::MAX / 2, 1024)], 4096),
        // Larger than the disk, whatever it holds.
        (&[(0, 1024), (1 << 40, 0)], 1 << 40),
    ] {
        let error = unpack(&[gnu(parts, size, &data).end()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sparse") || error.contains("more than"),
            "{parts:?}: {error}"
        );
    }
    let sized = |map: &[u8]| {
        let mut data = map.to_vec();
        data.resize(1024, 0);
        let sparse = [
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.realsize", b"4096"),
        ];
        Layer::new().pax(&sparse).file("x", &data).end()
    };
    for map in [
        &b""[..],
        b"x\n",
        b"1\n",
        b"999999999\n",
        b"2\n0\n512\n99999999999999999999999\n0\n",
    ] {
        let error = unpack(&[sized(map)]).unwrap_err().to_string();
        assert!(error.contains("sparse"), "{error}");
    }
}
