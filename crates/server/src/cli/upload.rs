//! A folder to an object in the daemon's S3.

use super::client::{Client, is_refused};
use anyhow::{Context, Result};
use aws_lc_rs::digest::{self, SHA256};
use dormouse_core::limits;
use dormouse_image::Packed;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, WriteMultipart};
use secrecy::ExposeSecret;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of one part of an upload.
const PART_BYTES: usize = 8 << 20;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// A code artifact in a file without a name.
#[derive(Debug)]
pub(super) struct Artifact {
    file: File,
    pub(super) packed: Packed,
    /// Of the file, in bytes.
    pub(super) length: u64,
    /// SHA-256 of the file, in hex.
    digest: String,
}

impl Artifact {
    /// Packs a folder. Blocks.
    pub(super) fn pack(folder: &Path) -> Result<Self> {
        let mut file = tempfile::tempfile().context("make a temporary file")?;
        let packed = dormouse_image::pack(folder, std::io::BufWriter::new(&file))
            .with_context(|| format!("pack {}", folder.display()))?;
        file.seek(SeekFrom::Start(0))?;
        let mut hash = digest::Context::new(&SHA256);
        let mut chunk = vec![0; 64 << 10];
        let mut length = 0;
        loop {
            match file.read(&mut chunk).context("read the archive")? {
                0 => break,
                read => {
                    hash.update(&chunk[..read]);
                    length += read as u64;
                }
            }
        }
        anyhow::ensure!(
            length <= limits::ARTIFACT_BYTES_MAX,
            "the archive is larger than {} bytes: list in .dockerignore what the build does not need",
            limits::ARTIFACT_BYTES_MAX
        );
        Ok(Self {
            file,
            packed,
            length,
            digest: hex::encode(hash.finish()),
        })
    }

    /// Puts it into a bucket, which is made if need be, and answers its URI. An artifact that is there
    /// already is not sent again: its key is its digest.
    pub(super) async fn upload(self, client: &Client, bucket: &str, name: &str) -> Result<String> {
        client.make_bucket(bucket).await.map_err(explained)?;
        let key = format!("{name}/{}.zip", self.digest);
        let store = store(client, bucket)?;
        let path = ObjectPath::parse(&key).context("object key")?;
        let there = store
            .head(&path)
            .await
            .is_ok_and(|found| found.size == self.length);
        if !there {
            let sent = send(&store, &path, self.file).await;
            sent.with_context(|| format!("upload to s3://{bucket}/{key}"))?;
        }
        Ok(format!("s3://{bucket}/{key}"))
    }
}

/// A daemon without an S3 of its own cannot be sent anything, and its other one has keys that we do not know.
fn explained(error: anyhow::Error) -> anyhow::Error {
    if !is_refused(&error, "NotImplemented") {
        return error;
    }
    error.context(
        "the artifact cannot be sent to the daemon: put a zip of the folder into a bucket of the S3 that it reads, and \
         name it in `aws lambda-microvms create-microvm-image --code-artifact uri=s3://BUCKET/KEY`",
    )
}

async fn send(store: &dyn ObjectStore, path: &ObjectPath, mut file: File) -> Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let first = read_part(&mut file)?;
    if first.len() < PART_BYTES {
        store.put(path, first.into()).await?;
        return Ok(());
    }
    let upload = store.put_multipart(path).await?;
    let mut writer = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    let mut part = first;
    while !part.is_empty() {
        writer.wait_for_capacity(PARTS_AT_ONCE).await?;
        writer.put(part.into());
        part = read_part(&mut file)?;
    }
    writer.finish().await?;
    Ok(())
}

fn read_part(file: &mut File) -> Result<Vec<u8>> {
    let mut part = Vec::with_capacity(PART_BYTES);
    file.take(PART_BYTES as u64).read_to_end(&mut part)?;
    Ok(part)
}

fn store(client: &Client, bucket: &str) -> Result<impl ObjectStore> {
    let endpoint = &client.endpoint;
    let plain = endpoint.url.starts_with("http://");
    let options = ClientOptions::new().with_connect_timeout(limits::S3_CONNECT_TIMEOUT);
    let store = AmazonS3Builder::new()
        .with_endpoint(&endpoint.url)
        .with_bucket_name(bucket)
        .with_region(&endpoint.region)
        .with_access_key_id(&endpoint.access_key_id)
        .with_secret_access_key(endpoint.secret.expose_secret())
        .with_client_options(options)
        .with_allow_http(plain)
        .build();
    store.context("connect to S3")
}
