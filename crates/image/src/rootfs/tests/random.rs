//! Random layers: against a model where there is one, and for survival where there is none.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    File(String, u8),
    Dir(String),
    Whiteout(String),
    Opaque(String),
    Symlink(String, String),
    HardLink(String, String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let names = prop::sample::select(vec!["a", "b", "..", "", ".", "victim", "/"]);
    prop::collection::vec(names, 1..5).prop_map(|names| names.join("/"))
}

fn plain_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(path, byte)| Op::File(path, byte % 10)),
        2 => path().prop_map(Op::Dir),
        1 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => plain_op(),
        2 => (path(), target()).prop_map(|(path, target)| Op::Symlink(path, target)),
        1 => (path(), path()).prop_map(|(path, target)| Op::HardLink(path, target)),
    ]
}

fn split(path: &str) -> (String, &str) {
    match path.rsplit_once('/') {
        Some((parent, name)) => (format!("{parent}/"), name),
        None => (String::new(), path),
    }
}

fn tar(ops: &[Op]) -> Vec<u8> {
    let mut layer = Layer::new();
    for op in ops {
        layer = match op {
            Op::File(path, byte) => layer.file(path, &[b'0' + byte]),
            Op::Dir(path) => layer.dir(path),
            Op::Whiteout(path) => {
                let (parent, name) = split(path);
                layer.file(&format!("{parent}.wh.{name}"), b"")
            }
            Op::Opaque(path) => layer.file(&format!("{path}/.wh..wh..opq"), b""),
            Op::Symlink(path, target) => layer.symlink(path, target),
            Op::HardLink(path, target) => layer.hard_link(path, target),
        };
    }
    layer.end()
}

/// Each path with its content (`/` for a folder) and the last layer that touched it or something below it.
type Model = BTreeMap<String, (String, usize)>;

/// Lays plain ops over each other by the book, one path at a time. None when a file is in a folder's place.
fn model(layers: &[Vec<Op>]) -> Option<BTreeMap<String, String>> {
    let mut model = Model::new();
    for (number, ops) in layers.iter().enumerate() {
        for op in ops {
            match op {
                Op::File(path, byte) => put(
                    &mut model,
                    path,
                    &char::from(b'0' + byte).to_string(),
                    number,
                )?,
                Op::Dir(path) => put(&mut model, path, "/", number)?,
                Op::Whiteout(path) => {
                    let below = format!("{path}/");
                    model.retain(|key, (_, layer)| {
                        *layer == number || (key != path && !key.starts_with(&below))
                    });
                }
                Op::Opaque(path) => {
                    let below = format!("{path}/");
                    model.retain(|key, (_, layer)| *layer == number || !key.starts_with(&below));
                }
                Op::Symlink(..) | Op::HardLink(..) => unreachable!("not a plain op"),
            }
        }
    }
    Some(
        model
            .into_iter()
            .map(|(path, (text, _))| (path, text))
            .collect(),
    )
}

fn put(model: &mut Model, path: &str, text: &str, number: usize) -> Option<()> {
    for (end, _) in path.match_indices('/') {
        let folder = model
            .entry(path[..end].to_owned())
            .or_insert_with(|| ("/".to_owned(), number));
        if folder.0 != "/" {
            return None;
        }
        folder.1 = number;
    }
    if text != "/" {
        let below = format!("{path}/");
        model.retain(|key, _| !key.starts_with(&below));
    }
    model.insert(path.to_owned(), (text.to_owned(), number));
    Some(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn plain_layers_are_laid_by_the_book(
        layers in prop::collection::vec(prop::collection::vec(plain_op(), 0..12), 1..4)
    ) {
        let tars: Vec<_> = layers.iter().map(|ops| tar(ops)).collect();
        match (unpack(&tars), model(&layers)) {
            (Ok(found), Some(expected)) => prop_assert_eq!(found, expected),
            (Err(_), None) => {}
            (found, expected) => prop_assert!(false, "{:?} but {:?}", found, expected),
        }
    }

    #[test]
    fn links_of_all_kinds_stay_inside(
        layers in prop::collection::vec(prop::collection::vec(any_op(), 0..12), 1..4)
    ) {
        let tars: Vec<_> = layers.iter().map(|ops| tar(ops)).collect();
        // Refused or not: `unpack` has looked that nothing outside has changed.
        let _ = unpack(&tars);
    }

    #[test]
    fn damaged_tars_are_survived(
        ops in prop::collection::vec(any_op(), 1..8),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        sum_again in any::<bool>(),
    ) {
        let mut tar = tar(&ops);
        for (index, byte) in damage {
            let at = index.index(tar.len());
            tar[at] = byte;
            if sum_again {
                // The damage gets past the checksum.
                let block = &mut tar[at / 512 * 512..][..512];
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let _ = unpack(&[tar]);
    }
}
