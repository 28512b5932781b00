//! What stands before MicroVMs and API: the listeners, the certificates, and the names by which clients find
//! them. Opened before anything else starts, so that a mistake is told at once.

use crate::aws_names;
use crate::config::Config;
use crate::connect::{self, Allowed, Connect};
use crate::daemon::reachable;
use crate::dns::{self, Zone};
use crate::http::{self, Service};
use crate::metrics;
use crate::privileges;
use crate::upstreams::LocalUpstreams;
use anyhow::{Context, Result};
use dormouse_ingress::{
    Acme, Authority, Certificates, Challenges, Domains, Followed, Given, Ingress, Names, TokenKeys,
};
use dormouse_secrets::Sealer;
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Everything that listens, not serving yet.
pub(crate) struct Front {
    /// Control API and S3.
    pub(crate) api: Listener,
    /// Endpoints, by TLS.
    pub(crate) ingress: Listener,
    /// Endpoints, without TLS.
    plain: Option<Listener>,
    /// `CONNECT`.
    pub(crate) connect: Option<Listener>,
    metrics: Option<Listener>,
    dns: Option<(dns::Sockets, Zone)>,
    names: Names,
    endpoint_domains: [String; 2],
    tls: Tls,
}

/// A listening socket and where it is.
pub(crate) struct Listener {
    socket: TcpListener,
    pub(crate) addr: SocketAddr,
}

/// Certificates, and what keeps them new.
struct Tls {
    endpoints: Arc<ServerConfig>,
    services: Arc<ServerConfig>,
    followed: Vec<Followed>,
    acme: Option<Acme>,
}

impl Front {
    /// Listens everywhere and checks every certificate. `domains` are the custom ones.
    pub(crate) async fn open(
        config: &Config,
        authority: &Arc<Authority>,
        domains: &Arc<Domains>,
        sealer: &Arc<Sealer>,
    ) -> Result<Self> {
        let endpoint_domains = [
            config.endpoint_domain.clone(),
            aws_names::endpoints(&config.region),
        ];
        let suffixes = endpoint_domains.each_ref().map(String::as_str);
        let challenges = Arc::new(Challenges::default());
        let tls = Tls::open(config, authority, domains, &suffixes, &challenges, sealer)?;
        let dns = match &config.dns {
            None => None,
            Some(dns) => {
                let sockets = dns::Sockets::bind(dns.addr).await;
                let sockets = sockets.with_context(|| cannot_listen(dns.addr, "dns.addr"))?;
                let zone = Zone::new(&config.endpoint_domain, dns, challenges);
                Some((sockets, zone))
            }
        };
        Ok(Self {
            api: Listener::bind(config.api_addr, "api_addr").await?,
            ingress: Listener::bind(config.ingress_addr, "ingress_addr").await?,
            plain: Listener::maybe(config.plain_addr, "endpoint.plain_addr").await?,
            connect: Listener::maybe(config.connect_addr, "connect.addr").await?,
            metrics: Listener::maybe(config.metrics_addr, "metrics_addr").await?,
            dns,
            names: Names::new(&suffixes, Arc::clone(domains)),
            endpoint_domains,
            tls,
        })
    }

    /// The proxy that is to serve the endpoints.
    pub(crate) fn proxy(
        &self,
        config: &Config,
        tokens: Arc<TokenKeys>,
        upstreams: LocalUpstreams,
    ) -> Arc<Ingress> {
        let mut settings = dormouse_ingress::Config::new(&config.endpoint_domain);
        settings.names = self.names.clone();
        settings.connections_max = privileges::connections_max();
        settings.response_timeout = config.limits.response_timeout;
        let tls = Arc::clone(&self.tls.endpoints);
        Arc::new(Ingress::new(settings, tls, tokens, Arc::new(upstreams)))
    }

    /// Serves until `stop`.
    pub(crate) fn start(
        self,
        service: &Arc<Service>,
        ingress: Arc<Ingress>,
        stop: &CancellationToken,
    ) -> Vec<JoinHandle<()>> {
        let config = &service.app.config;
        let mut tasks = vec![
            tokio::spawn(http::serve(
                self.api.socket,
                Arc::clone(service),
                stop.clone(),
            )),
            tokio::spawn(dormouse_ingress::serve(
                self.ingress.socket,
                Arc::clone(&ingress),
                stop.clone(),
            )),
        ];
        if let Some(plain) = self.plain {
            let plain = dormouse_ingress::serve_plain(plain.socket, ingress, stop.clone());
            tasks.push(tokio::spawn(plain));
        }
        if let Some(listener) = self.metrics {
            let traffic = service.app.traffic.clone();
            let scrapes = metrics::serve(listener.socket, traffic, stop.clone());
            tasks.push(tokio::spawn(scrapes));
        }
        if let Some(listener) = self.connect {
            let connect = Connect {
                allowed: Allowed {
                    services: service_names(&config.region),
                    endpoints: self.endpoint_domains.to_vec(),
                },
                tls: TlsAcceptor::from(self.tls.services),
                service: Arc::clone(service),
                ingress: reachable(self.ingress.addr),
                stop: stop.clone(),
            };
            tasks.push(tokio::spawn(connect::serve(
                listener.socket,
                Arc::new(connect),
            )));
        }
        if let Some((sockets, zone)) = self.dns {
            tasks.push(tokio::spawn(dns::serve(sockets, zone, stop.clone())));
        }
        let followed = self.tls.followed.into_iter();
        tasks.extend(followed.map(|files| tokio::spawn(files.follow(stop.clone()))));
        if let Some(acme) = self.tls.acme {
            tasks.push(tokio::spawn(acme.run(stop.clone())));
        }
        tasks
    }
}

impl Tls {
    fn open(
        config: &Config,
        authority: &Arc<Authority>,
        domains: &Arc<Domains>,
        suffixes: &[&str],
        challenges: &Arc<Challenges>,
        sealer: &Arc<Sealer>,
    ) -> Result<Self> {
        let wildcard = Given::new(&format!("*.{}", config.endpoint_domain));
        let own = config.tls.certificate.iter();
        let own = own.map(|files| (files, Arc::clone(&wildcard)));
        let custom = config.tls.domains.iter();
        let custom = custom.map(|(name, files)| (files, Given::new(name)));
        let (mut given, mut followed) = (vec![Arc::clone(&wildcard)], Vec::new());
        for (files, place) in own.chain(custom) {
            given.push(Arc::clone(&place));
            followed.push(files.clone().load(place).context("TLS certificate")?);
        }
        let acme = config.tls.acme.clone().map(|acme| {
            let folder = config.data_dir.join("tls/acme");
            let (sealer, challenges) = (Arc::clone(sealer), Arc::clone(challenges));
            let domain = &config.endpoint_domain;
            Acme::open(acme, domain, &folder, sealer, challenges, wildcard)
        });
        let acme = acme.transpose().context("files of the ACME server's")?;
        let names = suffixes.iter();
        let names = names.flat_map(|suffix| [format!("*.{suffix}"), (*suffix).to_owned()]);
        let (names, ca) = (names.collect(), Arc::clone(authority));
        let endpoints = Certificates::new(ca, names, given, Arc::clone(domains))?;
        let (names, ca) = (service_names(&config.region), Arc::clone(authority));
        let services = Certificates::new(ca, names, Vec::new(), Arc::default())?;
        Ok(Self {
            endpoints: Arc::new(endpoints.server_config()?),
            services: Arc::new(services.server_config()?),
            followed,
            acme,
        })
    }
}

impl Listener {
    async fn bind(addr: SocketAddr, key: &str) -> Result<Self> {
        let socket = TcpListener::bind(addr).await;
        let socket = socket.with_context(|| cannot_listen(addr, key))?;
        let addr = socket.local_addr()?;
        Ok(Self { socket, addr })
    }

    async fn maybe(addr: Option<SocketAddr>, key: &str) -> Result<Option<Self>> {
        match addr {
            Some(addr) => Self::bind(addr, key).await.map(Some),
            None => Ok(None),
        }
    }
}

fn cannot_listen(addr: SocketAddr, key: &str) -> String {
    format!("listen on {addr} (`{key}`)")
}

/// The AWS services that the daemon stands in for, as a certificate has their names.
fn service_names(region: &str) -> Vec<String> {
    let s3 = aws_names::s3(region);
    let buckets = s3.clone().map(|name| format!("*.{name}"));
    let services = aws_names::services(region).into_iter();
    services.chain(s3).chain(buckets).collect()
}
