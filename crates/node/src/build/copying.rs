//! COPY and ADD: files of the context, of the Dockerfile, of other disks and of the network.

use super::stages::Build;
use super::vm::BuildVm;
use super::{BuildError, blocking, fetch, remove};
use dormouse_core::guest::{CopySpec, TreeCopySpec};
use dormouse_image::{CopySource, CopyStep, Source};
use std::path::Path;
use std::sync::Arc;

/// Mode of a file that ADD has fetched, as in Docker.
const FETCHED_MODE: u32 = 0o600;

/// Carries out a copy.
pub(super) async fn run(
    build: Build<'_>,
    vm: &BuildVm,
    copy: &CopyStep,
    line: usize,
) -> Result<(), BuildError> {
    if copy.from != Source::Context {
        return from_disk(vm, copy, line).await;
    }
    let is_url = |source: &CopySource| matches!(source, CopySource::Url { .. });
    if !copy.sources.iter().all(is_url) {
        from_context(build, vm, copy, line).await?;
    }
    for source in &copy.sources {
        if let CopySource::Url { url, name } = source {
            from_network(build, vm, copy, (url, name), line).await?;
        }
    }
    Ok(())
}

async fn from_disk(vm: &BuildVm, copy: &CopyStep, line: usize) -> Result<(), BuildError> {
    let tree = vm.tree_of(&copy.from).ok_or(BuildError::Stopped)?;
    let paths = copy.sources.iter().filter_map(|source| match source {
        CopySource::Path(path) => Some(path.clone()),
        CopySource::Text { .. } | CopySource::Url { .. } => None,
    });
    let spec = TreeCopySpec {
        sources: paths.collect(),
        dest: copy.dest.clone(),
        owner: copy.owner.clone(),
        mode: copy.chmod,
        parents: copy.parents,
        excludes: copy.excludes.clone(),
    };
    let copied = vm.guest().copy_tree(&tree, &spec).await;
    copied.map_err(BuildError::in_guest(line))
}

async fn from_context(
    build: Build<'_>,
    vm: &BuildVm,
    copy: &CopyStep,
    line: usize,
) -> Result<(), BuildError> {
    let path = build.dir.scratch().join("copy.tar");
    let context = Arc::clone(&build.prepared.context);
    let (step, tar) = (copy.clone(), path.clone());
    let output = blocking(move || {
        let file = std::fs::File::create(&tar).map_err(BuildError::io("create tar"))?;
        let written = context.copy_tar(&step, std::io::BufWriter::new(file));
        written.map_err(|source| BuildError::Copy { line, source })
    })
    .await?;
    if output.entries > 0 || output.archives.is_empty() {
        send(vm, &output.spec, &path, line).await?;
    }
    for archive in &output.archives {
        unpack_file(build, vm, copy, archive, line).await?;
    }
    remove(&path).await
}

/// Unpacks an archive of the context; copies it when it only looked like one.
async fn unpack_file(
    build: Build<'_>,
    vm: &BuildVm,
    copy: &CopyStep,
    archive: &str,
    line: usize,
) -> Result<(), BuildError> {
    let context = Arc::clone(&build.prepared.context);
    let path = archive.to_owned();
    let file = blocking(move || {
        let file = context.open_file(&path);
        file.map_err(|source| BuildError::Copy { line, source })
    })
    .await?;
    let spec = unpack_spec(copy);
    let file = tokio::fs::File::from_std(file);
    let unpacked = vm.guest().unpack(&spec, file).await;
    if unpacked.map_err(BuildError::in_guest(line))? {
        return Ok(());
    }
    let tar = build.dir.scratch().join("file.tar");
    let context = Arc::clone(&build.prepared.context);
    let (step, path, draft) = (copy.clone(), archive.to_owned(), tar.clone());
    let spec = blocking(move || {
        let file = std::fs::File::create(&draft).map_err(BuildError::io("create tar"))?;
        let written = context.file_tar(&step, &path, std::io::BufWriter::new(file));
        written.map_err(|source| BuildError::Copy { line, source })
    })
    .await?;
    send(vm, &spec, &tar, line).await?;
    remove(&tar).await
}

/// Fetches a file with the build VM's reach, and no other, and copies or unpacks it.
async fn from_network(
    build: Build<'_>,
    vm: &BuildVm,
    copy: &CopyStep,
    (url, name): (&str, &str),
    line: usize,
) -> Result<(), BuildError> {
    let is_folder = copy.dest.ends_with('/');
    if is_folder && name.is_empty() {
        return Err(BuildError::Refused {
            line,
            problem: format!("cannot tell the name of the file that {url} is"),
        });
    }
    let path = build.dir.scratch().join("fetched");
    let fetched = fetch::fetch(build, vm.guest(), url, &path).await;
    let fetched = fetched.map_err(|source| BuildError::Fetch {
        line,
        url: url.to_owned(),
        source: Box::new(source),
    })?;
    if copy
        .checksum
        .as_ref()
        .is_some_and(|wanted| *wanted != fetched.sha256)
    {
        let found = &fetched.sha256;
        return Err(BuildError::Refused {
            line,
            problem: format!("{url} has the checksum sha256:{found}"),
        });
    }
    if copy.unpack_urls {
        let file = open(&path).await?;
        let unpacked = vm.guest().unpack(&unpack_spec(copy), file).await;
        if unpacked.map_err(BuildError::in_guest(line))? {
            return remove(&path).await;
        }
    }
    let tar = build.dir.scratch().join("file.tar");
    let (from, to) = (path.clone(), tar.clone());
    let name = if name.is_empty() { "file" } else { name };
    let (name, mode) = (name.to_owned(), copy.chmod.unwrap_or(FETCHED_MODE));
    blocking(move || {
        one_file_tar(&from, &to, &name, mode, fetched.modified_s)
            .map_err(BuildError::io("write tar"))
    })
    .await?;
    let spec = CopySpec {
        as_file: !is_folder,
        ..unpack_spec(copy)
    };
    send(vm, &spec, &tar, line).await?;
    remove(&tar).await?;
    remove(&path).await
}

/// Where an archive is unpacked: its destination is a folder. Owners in it stay unless the step names one.
fn unpack_spec(copy: &CopyStep) -> CopySpec {
    let dest = match copy.dest.trim_end_matches('/') {
        "" => "/",
        dest => dest,
    };
    CopySpec {
        dest: dest.to_owned(),
        as_file: false,
        owner: copy.owner.clone(),
    }
}

fn one_file_tar(
    from: &Path,
    to: &Path,
    name: &str,
    mode: u32,
    modified_s: u64,
) -> std::io::Result<()> {
    let file = std::fs::File::open(from)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(file.metadata()?.len());
    header.set_mode(mode);
    header.set_mtime(modified_s);
    let out = std::io::BufWriter::new(std::fs::File::create(to)?);
    let mut tar = tar::Builder::new(out);
    tar.append_data(&mut header, name, file)?;
    tar.into_inner()?
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    Ok(())
}

async fn send(vm: &BuildVm, spec: &CopySpec, tar: &Path, line: usize) -> Result<(), BuildError> {
    let copied = vm.guest().copy(spec, open(tar).await?).await;
    copied.map_err(BuildError::in_guest(line))
}

async fn open(path: &Path) -> Result<tokio::fs::File, BuildError> {
    let file = tokio::fs::File::open(path).await;
    file.map_err(BuildError::io("open file to send"))
}
