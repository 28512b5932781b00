//! What operators count: sums over all MicroVMs, and the same of each that is live.

use std::fmt;
use std::sync::Arc;

use dormouse_core::EndpointId;
use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::Serialize;

use crate::Upstreams;
use crate::refusal::Refusal;
use crate::traffic::{Traffic, Vm};

/// The classes of statuses, by their first digit less one.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Bounds of the histograms, in seconds: from what a warm tunnel takes to the longest wake.
const BOUNDS_S: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 120.0,
];

/// What is counted of one MicroVM, and of all together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// By the first digit of the status.
    answers: [Counter; 5],
    /// Of those the ones that the proxy gave itself.
    pub(crate) refused: Counter,
    /// Requests that found the MicroVM asleep, and were held.
    pub(crate) held: Counter,
    /// Those that wait now.
    pub(crate) waiting: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
}

impl Counters {
    pub(crate) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(answers) = self.answers.get(class.wrapping_sub(1)) {
            answers.inc();
        }
    }
}

/// What is counted of all MicroVMs together. It outlives each of them.
#[derive(Debug)]
pub(crate) struct Sums {
    pub(crate) all: Counters,
    pub(crate) connections: Gauge,
    refusals: Family<[(&'static str, &'static str); 1], Counter>,
    /// From a request's arrival to a MicroVM that is awake, for those that found it asleep.
    pub(crate) wake: Histogram,
    /// What a tunnel to an app takes.
    pub(crate) connect: Histogram,
    /// From a request on its way to the app to the head of the answer.
    pub(crate) first_byte: Histogram,
    pub(crate) duration: Histogram,
}

impl Default for Sums {
    fn default() -> Self {
        let histogram = || Histogram::new(BOUNDS_S);
        Self {
            all: Counters::default(),
            connections: Gauge::default(),
            refusals: Family::default(),
            wake: histogram(),
            connect: histogram(),
            first_byte: histogram(),
            duration: histogram(),
        }
    }
}

impl Sums {
    pub(crate) fn refused(&self, refusal: Refusal) {
        self.all.refused.inc();
        self.refusals
            .get_or_create(&[("reason", refusal.name())])
            .inc();
    }
}

/// The metrics of one ingress; clones are the same.
#[derive(Clone)]
pub struct Metrics {
    sums: Arc<Sums>,
    traffic: Arc<Traffic>,
    upstreams: Arc<dyn Upstreams>,
}

/// What was counted of one MicroVM since the daemon started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VmMetrics {
    /// Answers with a status of 200 to 299.
    pub answers_2xx: u64,
    /// Answers with a status of 300 to 399.
    pub answers_3xx: u64,
    /// Answers with a status of 400 to 499.
    pub answers_4xx: u64,
    /// Answers with a status of 500 and above.
    pub answers_5xx: u64,
    /// Answers of these that the proxy gave itself.
    pub refused: u64,
    /// Requests that came while the MicroVM slept, and were held.
    pub held: u64,
    /// Requests that wait for the MicroVM now.
    pub waiting: u64,
    /// Requests, streams and switched connections that are in flight now.
    pub in_flight: u64,
    /// Bytes that went to the app.
    pub bytes_in: u64,
    /// Bytes that came from the app.
    pub bytes_out: u64,
}

impl Metrics {
    pub(crate) fn new(
        sums: Arc<Sums>,
        traffic: Arc<Traffic>,
        upstreams: Arc<dyn Upstreams>,
    ) -> Self {
        Self {
            sums,
            traffic,
            upstreams,
        }
    }

    /// All of it, in the text format of Prometheus 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("dormouse");
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).expect("a string takes any text");
        text
    }

    /// What was counted of the MicroVM behind `endpoint`: zeros where nothing was.
    #[must_use]
    pub fn of(&self, endpoint: &EndpointId) -> VmMetrics {
        let vm = self.traffic.find(endpoint);
        vm.map_or_else(VmMetrics::default, |vm| VmMetrics::new(&vm.counters))
    }

    fn live(&self) -> Vec<Arc<Vm>> {
        self.traffic
            .live(|endpoint| self.upstreams.target(endpoint).is_some())
    }
}

impl VmMetrics {
    fn new(counters: &Counters) -> Self {
        let [_, answers_2xx, answers_3xx, answers_4xx, answers_5xx] =
            counters.answers.each_ref().map(Counter::get);
        // One that is read while it falls may be below zero for a moment.
        let now = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or(0);
        Self {
            answers_2xx,
            answers_3xx,
            answers_4xx,
            answers_5xx,
            refused: counters.refused.get(),
            held: counters.held.get(),
            waiting: now(&counters.waiting),
            in_flight: now(&counters.in_flight),
            bytes_in: counters.bytes_in.get(),
            bytes_out: counters.bytes_out.get(),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// A metric of [`Counters`]: name, help, and where it is.
type Row = (
    &'static str,
    &'static str,
    fn(&Counters) -> &dyn EncodeMetric,
);

const ROWS: [Row; 6] = [
    ("refused", "Requests that the proxy answered itself", |c| {
        &c.refused
    }),
    ("held", "Requests that found their microVM asleep", |c| {
        &c.held
    }),
    ("waiting", "Requests that wait for their microVM now", |c| {
        &c.waiting
    }),
    ("in_flight", "Requests and streams in flight", |c| {
        &c.in_flight
    }),
    ("in_bytes", "Bytes to apps", |c| &c.bytes_in),
    ("out_bytes", "Bytes from apps", |c| &c.bytes_out),
];

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (sums, vms) = (&self.sums, self.live());
        let connections = &sums.connections;
        encode_one(
            &mut encoder,
            "ingress_connections",
            "Client connections",
            connections,
        )?;
        encode_answers(&mut encoder, "ingress_answers", [(None, &sums.all)])?;
        let of_vms = vms
            .iter()
            .map(|vm| (Some(vm.microvm.as_str()), &vm.counters));
        encode_answers(&mut encoder, "microvm_answers", of_vms)?;
        let refusals = &sums.refusals;
        encode_one(
            &mut encoder,
            "ingress_refusals",
            "Refusals by reason",
            refusals,
        )?;
        for (name, help, metric) in ROWS {
            encode_one(
                &mut encoder,
                &format!("ingress_{name}"),
                help,
                metric(&sums.all),
            )?;
            let name = format!("microvm_{name}");
            let kind = metric(&sums.all).metric_type();
            let mut family = encoder.encode_descriptor(&name, help, None, kind)?;
            for vm in &vms {
                let labels = [("microvm", vm.microvm.as_str())];
                metric(&vm.counters).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, histogram) in [
            (
                "wake",
                "From the arrival of a held request to an awake microVM",
                &sums.wake,
            ),
            ("connect", "Making a way to an app", &sums.connect),
            (
                "first_byte",
                "From a request to the head of its app's answer",
                &sums.first_byte,
            ),
            ("duration", "Whole exchanges", &sums.duration),
        ] {
            encode_one(
                &mut encoder,
                &format!("ingress_{name}_seconds"),
                help,
                histogram,
            )?;
        }
        Ok(())
    }
}

fn encode_one(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &dyn EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// Answers by class, of one MicroVM or more, or of all together.
fn encode_answers<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    counted: impl IntoIterator<Item = (Option<&'a str>, &'a Counters)>,
) -> fmt::Result {
    let help = "Answers by class of status";
    let mut family: MetricEncoder<'_> =
        encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (microvm, counters) in counted {
        for (class, answers) in CLASSES.into_iter().zip(&counters.answers) {
            let class = ("class", class);
            match microvm {
                Some(microvm) => {
                    let labels = [("microvm", microvm), class];
                    answers.encode(family.encode_family(&labels)?)?;
                }
                None => answers.encode(family.encode_family(&[class])?)?,
            }
        }
    }
    Ok(())
}
