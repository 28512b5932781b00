use super::*;
use crate::image::{VersionSpec, version_number};
use crate::{AccountId, BuildId, ImageArn};
use expect_test::expect;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fmt::Write;
use uuid::Uuid;

const NOW: Timestamp = Timestamp(7);
const SIZES: SnapshotSizes = SnapshotSizes {
    memory: 1,
    code: 2,
    disk: 3,
};
const IMAGE_STATES: [ImageState; 8] = [
    ImageState::Creating,
    ImageState::Created,
    ImageState::CreateFailed,
    ImageState::Updating,
    ImageState::Updated,
    ImageState::UpdateFailed,
    ImageState::Deleting,
    ImageState::DeleteFailed,
];
const VERSION_STATES: [VersionState; 6] = [
    VersionState::Pending,
    VersionState::InProgress,
    VersionState::Successful,
    VersionState::Failed,
    VersionState::Deleting,
    VersionState::DeleteFailed,
];

fn arn() -> ImageArn {
    ImageArn::parse("arn:aws:lambda:us-east-1:000000000000:microvm-image:app").unwrap()
}

fn account() -> AccountId {
    AccountId::parse("000000000000").unwrap()
}

fn image(state: ImageState) -> Image {
    Image {
        arn: arn(),
        id: Uuid::nil().to_string(),
        account: account(),
        state,
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        last_version: 2,
        latest_active_version: Some("1.0".to_owned()),
        latest_failed_version: None,
        tags: BTreeMap::new(),
    }
}

fn version(number: u32, state: VersionState) -> Version {
    Version {
        image: arn(),
        version: version_name(number),
        account: account(),
        state,
        active: state == VersionState::Successful,
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        spec: serde_json::from_value::<VersionSpec>(serde_json::json!({
            "artifact_uri": "s3://bucket/key", "memory_mib": 512, "environment": {}, "ready_hook": null,
            "egress_connectors": [], "settings": null,
        }))
        .unwrap(),
    }
}

fn build(version: &Version) -> Build {
    Build {
        id: BuildId::new(Uuid::nil()),
        image: arn(),
        version: version.version.clone(),
        account: account(),
        state: version.state,
        state_reason: None,
        created_at: Timestamp(0),
        memory_mib: 512,
        sizes: None,
    }
}

fn told<T>(result: Result<T, Refusal>, image: &Image) -> String {
    match result {
        Ok(_) => image.state.wire_name().to_owned(),
        Err(refusal) => format!("no: {refusal}"),
    }
}

#[test]
fn what_each_state_of_an_image_allows() {
    let mut table = String::new();
    for state in IMAGE_STATES {
        let mut updated = image(state);
        let update = begin_update(&mut updated, NOW);
        let mut deleted = image(state);
        let delete = begin_image_delete(&mut deleted, false, UnderWay::Refuse, NOW);
        let mut cancelled = image(state);
        let cancel = begin_image_delete(&mut cancelled, false, UnderWay::Cancel, NOW);
        let mut used = image(state);
        let in_use = begin_image_delete(&mut used, true, UnderWay::Cancel, NOW);
        let mut switched = image(state);
        let switch = set_active(
            &mut switched,
            &mut version(1, VersionState::Successful),
            false,
            &[],
            NOW,
        );
        writeln!(
            table,
            "{:13} update {:26} delete {:26} cancel {:10} in use {:25} deactivate {}",
            state.wire_name(),
            told(update, &updated),
            told(delete, &deleted),
            told(cancel, &cancelled),
            told(in_use, &used),
            told(switch, &switched),
        )
        .unwrap();
    }
    expect![[r#"
        CREATING      update no: the image is CREATING  delete no: the image is CREATING  cancel DELETING   in use no: microvms use the image deactivate no: the image is CREATING
        CREATED       update UPDATING                   delete DELETING                   cancel DELETING   in use no: microvms use the image deactivate CREATED
        CREATE_FAILED update UPDATING                   delete DELETING                   cancel DELETING   in use no: microvms use the image deactivate CREATE_FAILED
        UPDATING      update no: the image is UPDATING  delete no: the image is UPDATING  cancel DELETING   in use no: microvms use the image deactivate no: the image is UPDATING
        UPDATED       update UPDATING                   delete DELETING                   cancel DELETING   in use no: microvms use the image deactivate UPDATED
        UPDATE_FAILED update UPDATING                   delete DELETING                   cancel DELETING   in use no: microvms use the image deactivate UPDATE_FAILED
        DELETING      update no: the image is DELETING  delete DELETING                   cancel DELETING   in use DELETING                  deactivate no: the image is DELETING
        DELETE_FAILED update UPDATING                   delete DELETING                   cancel DELETING   in use no: microvms use the image deactivate DELETE_FAILED
    "#]]
    .assert_eq(&table);
}

#[test]
fn what_each_state_of_a_version_allows() {
    let mut table = String::new();
    for state in VERSION_STATES {
        let mut begun = version(2, state);
        let begins = begin_build(&mut begun, &mut build(&version(2, state)), NOW);
        let mut done = (image(ImageState::Updating), version(2, state));
        let mut build = build(&done.1);
        let ends = finish_build(&mut done.0, &mut done.1, &mut build, Ok(SIZES), NOW);
        let activate = set_active(
            &mut image(ImageState::Updated),
            &mut version(2, state),
            true,
            &[],
            NOW,
        );
        let others = [version(1, VersionState::Successful)];
        let mut deleted = version(2, state);
        let delete = begin_version_delete(
            &mut image(ImageState::Updated),
            &mut deleted,
            &others,
            UnderWay::Refuse,
            NOW,
        );
        let mut cancelled = version(2, state);
        let cancel = begin_version_delete(
            &mut image(ImageState::Updating),
            &mut cancelled,
            &others,
            UnderWay::Cancel,
            NOW,
        );
        let told = |result: Result<(), Refusal>| match result {
            Ok(()) => "yes".to_owned(),
            Err(refusal) => format!("no: {refusal}"),
        };
        writeln!(
            table,
            "{:13} builds {begins:5} ends {ends:5} activate {:33} delete {} cancel {}",
            state.wire_name(),
            told(activate),
            told(delete),
            told(cancel),
        )
        .unwrap();
    }
    expect![[r#"
        PENDING       builds true  ends true  activate no: the version is PENDING        delete yes cancel yes
        IN_PROGRESS   builds true  ends true  activate no: the version is IN_PROGRESS    delete yes cancel yes
        SUCCESSFUL    builds false ends false activate yes                               delete yes cancel no: the image is UPDATING
        FAILED        builds false ends false activate no: the version is FAILED         delete yes cancel no: the image is UPDATING
        DELETING      builds false ends false activate no: the version is DELETING       delete yes cancel yes
        DELETE_FAILED builds false ends false activate no: the version is DELETE_FAILED  delete yes cancel no: the image is UPDATING
    "#]]
    .assert_eq(&table);
}

#[test]
fn a_build_ends_an_image_of_one_version_and_an_update_differently() {
    let failed = || Err("CONTAINER_BUILD_FAILED: no".to_owned());
    for (from, outcome, to) in [
        (ImageState::Creating, Ok(SIZES), ImageState::Created),
        (ImageState::Creating, failed(), ImageState::CreateFailed),
        (ImageState::Updating, Ok(SIZES), ImageState::Updated),
        (ImageState::Updating, failed(), ImageState::UpdateFailed),
    ] {
        let mut image = image(from);
        let mut version = version(2, VersionState::InProgress);
        let mut build = build(&version);
        let succeeds = outcome.is_ok();
        assert!(finish_build(
            &mut image,
            &mut version,
            &mut build,
            outcome,
            NOW
        ));
        assert_eq!(image.state, to);
        assert_eq!(version.active, succeeds);
        assert_eq!(build.state, version.state);
        assert_eq!(build.sizes.is_some(), succeeds);
        assert_eq!(build.state_reason.is_none(), succeeds);
        let active = if succeeds { "2.0" } else { "1.0" };
        assert_eq!(image.latest_active_version.as_deref(), Some(active));
        assert_eq!(image.latest_failed_version.is_none(), succeeds);
        assert_eq!(
            (image.updated_at, version.updated_at),
            (NOW, NOW),
            "{from:?}"
        );
    }
}

#[test]
fn the_tenth_version_is_newer_than_the_ninth() {
    let mut image = image(ImageState::Updated);
    let mut nine = version(9, VersionState::Successful);
    let ten = version(10, VersionState::Successful);
    set_active(&mut image, &mut nine, true, std::slice::from_ref(&ten), NOW).unwrap();
    assert_eq!(image.latest_active_version.as_deref(), Some("10.0"));
    set_active(&mut image, &mut nine, false, &[], NOW).unwrap();
    assert_eq!(image.latest_active_version, None);
}

#[test]
fn the_last_version_stays() {
    let refused = begin_version_delete(
        &mut image(ImageState::Created),
        &mut version(1, VersionState::Successful),
        &[],
        UnderWay::Refuse,
        NOW,
    );
    assert_eq!(refused, Err(Refusal::LastVersion));
}

#[test]
fn a_deletion_that_failed_leaves_nothing_to_launch() {
    let mut image = image(ImageState::Deleting);
    let mut one = version(1, VersionState::Successful);
    assert!(!is_launchable(&image, &one));
    delete_with_image(&mut one, NOW);
    fail_image_delete(&mut image, NOW);
    assert!(!is_launchable(&image, &one));
    assert_eq!(image.latest_active_version, None);
}

/// What may be asked of an image, of its `usize`-th version where it is about one.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Update,
    BeginBuild(usize),
    EndBuild(usize, bool),
    SetActive(usize, bool),
    Delete(usize, UnderWay),
    FinishDelete(usize),
    FailDelete(usize),
}

fn wish() -> impl Strategy<Value = Wish> {
    let under_way = prop_oneof![Just(UnderWay::Refuse), Just(UnderWay::Cancel)];
    prop_oneof![
        Just(Wish::Update),
        (0..6usize).prop_map(Wish::BeginBuild),
        (0..6usize, any::<bool>()).prop_map(|(index, ok)| Wish::EndBuild(index, ok)),
        (0..6usize, any::<bool>()).prop_map(|(index, active)| Wish::SetActive(index, active)),
        (0..6usize, under_way).prop_map(|(index, under_way)| Wish::Delete(index, under_way)),
        (0..6usize).prop_map(Wish::FinishDelete),
        (0..6usize).prop_map(Wish::FailDelete),
    ]
}

/// An image and all its versions, as the store would have them.
struct Family {
    image: Image,
    versions: Vec<Version>,
    given: Vec<u32>,
}

impl Family {
    fn new() -> Self {
        Self {
            image: Image {
                last_version: 1,
                latest_active_version: None,
                ..image(ImageState::Creating)
            },
            versions: vec![version(1, VersionState::Pending)],
            given: vec![1],
        }
    }

    /// The version at this place, and the others.
    fn split(&self, index: usize) -> (Version, Vec<Version>) {
        let mut others = self.versions.clone();
        let chosen = others.remove(index % self.versions.len());
        (chosen, others)
    }

    fn put(&mut self, changed: Version) {
        for version in &mut self.versions {
            if version.version == changed.version {
                *version = changed.clone();
            }
        }
    }

    fn grant(&mut self, wish: Wish) {
        match wish {
            Wish::Update => {
                if let Ok(name) = begin_update(&mut self.image, NOW) {
                    let number = version_number(&name);
                    self.given.push(number);
                    self.versions.push(version(number, VersionState::Pending));
                }
            }
            Wish::BeginBuild(index) => {
                let (mut chosen, _) = self.split(index);
                let mut build = build(&chosen);
                begin_build(&mut chosen, &mut build, NOW);
                self.put(chosen);
            }
            Wish::EndBuild(index, succeeds) => {
                let (mut chosen, _) = self.split(index);
                let mut build = build(&chosen);
                let outcome = succeeds.then_some(SIZES).ok_or_else(|| "no".to_owned());
                finish_build(&mut self.image, &mut chosen, &mut build, outcome, NOW);
                self.put(chosen);
            }
            Wish::SetActive(index, active) => {
                let (mut chosen, others) = self.split(index);
                let _ = set_active(&mut self.image, &mut chosen, active, &others, NOW);
                self.put(chosen);
            }
            Wish::Delete(index, under_way) => {
                let (mut chosen, others) = self.split(index);
                let _ = begin_version_delete(&mut self.image, &mut chosen, &others, under_way, NOW);
                self.put(chosen);
            }
            Wish::FinishDelete(index) => {
                let (chosen, others) = self.split(index);
                if chosen.state == VersionState::Deleting {
                    self.versions = others;
                    assert!(finish_version_delete(&mut self.image, NOW));
                }
            }
            Wish::FailDelete(index) => {
                let (mut chosen, _) = self.split(index);
                if chosen.state == VersionState::Deleting {
                    fail_version_delete(&mut self.image, &mut chosen, NOW);
                    self.put(chosen);
                }
            }
        }
    }

    fn newest(&self, wanted: impl Fn(&Version) -> bool) -> Option<String> {
        let numbers = self.versions.iter().filter(|v| wanted(v));
        let newest = numbers.map(|v| version_number(&v.version)).max();
        newest.map(version_name)
    }

    fn check(&self) {
        let mut numbers = self.given.clone();
        numbers.dedup();
        assert!(numbers.is_sorted() && numbers.len() == self.given.len());
        assert_eq!(Some(&self.image.last_version), self.given.last());
        assert!(!self.versions.is_empty(), "an image has a version");
        let launchable = self.newest(|v| is_launchable(&self.image, v));
        assert_eq!(self.image.latest_active_version, launchable);
        let failed = self.newest(|v| v.state == VersionState::Failed);
        assert_eq!(self.image.latest_failed_version, failed);
        let under_way = |v: &&Version| v.state.is_building() || v.state == VersionState::Deleting;
        let under_way = self.versions.iter().filter(under_way).count();
        assert_eq!(
            self.image.state.is_settled(),
            under_way == 0,
            "{:?}",
            self.image.state
        );
        assert!(under_way <= 1, "one thing at a time");
    }
}

proptest! {
    #[test]
    fn whatever_is_asked_the_records_agree(wishes in prop::collection::vec(wish(), 1..60)) {
        let mut family = Family::new();
        for wish in wishes {
            family.grant(wish);
            family.check();
        }
    }
}
