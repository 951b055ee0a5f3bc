//! All metrics at one time, as OTLP has them: what a scraper would have read, for devices that no scraper reaches.
//!
//! Made from the text that scrapers get, so that there is one list of metrics and not two.

use super::inputs::{attribute, text};
use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum, metric::Data,
        number_data_point::Value,
    },
};
use std::collections::BTreeMap;

/// The metrics of an OpenMetrics text that we have written; counters run since `start` (both times in nanoseconds since 1970).
pub(super) fn metrics(exposition: &str, start: u64, now: u64) -> Vec<Metric> {
    let mut all: Vec<Metric> = Vec::new();
    let mut help = String::new();
    let mut histograms = Histograms::default();
    for line in exposition.lines() {
        if let Some((_, words)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help = words.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let data = match kind {
                "counter" => Data::Sum(Sum {
                    data_points: Vec::new(),
                    aggregation_temporality: AggregationTemporality::Cumulative.into(),
                    is_monotonic: true,
                }),
                "histogram" => Data::Histogram(Histogram {
                    data_points: Vec::new(),
                    aggregation_temporality: AggregationTemporality::Cumulative.into(),
                }),
                _ => Data::Gauge(Gauge::default()),
            };
            histograms.move_to(all.last_mut());
            let (name, description) = (name.to_owned(), std::mem::take(&mut help));
            all.push(Metric { name, description, data: Some(data), ..Metric::default() });
        } else if let Some(Sample { name, labels, value }) = sample(line) {
            let Some(metric) = all.last_mut() else { continue };
            let part = name.strip_prefix(metric.name.as_str()).unwrap_or_default().to_owned();
            let point = |labels| NumberDataPoint {
                attributes: attributes(labels),
                start_time_unix_nano: start,
                time_unix_nano: now,
                value: Some(Value::AsDouble(value)),
                ..NumberDataPoint::default()
            };
            match &mut metric.data {
                Some(Data::Sum(sum)) => sum.data_points.push(point(labels)),
                Some(Data::Gauge(gauge)) => gauge.data_points.push(point(labels)),
                Some(Data::Histogram(_)) => histograms.add(&part, labels, value, (start, now)),
                _ => {}
            }
        }
    }
    histograms.move_to(all.last_mut());
    // Families that this machine has no samples of.
    all.retain(|metric| match &metric.data {
        Some(Data::Sum(Sum { data_points, .. }) | Data::Gauge(Gauge { data_points })) => !data_points.is_empty(),
        Some(Data::Histogram(histogram)) => !histogram.data_points.is_empty(),
        _ => false,
    });
    all
}

/// The points of a histogram, by labels, as its lines come.
#[derive(Default)]
struct Histograms(BTreeMap<Vec<(String, String)>, HistogramDataPoint>);

impl Histograms {
    fn add(&mut self, part: &str, mut labels: Vec<(String, String)>, value: f64, (start, now): (u64, u64)) {
        let bound = labels.iter().position(|(name, _)| name == "le").map(|at| labels.remove(at).1);
        let point = self.0.entry(labels).or_default();
        (point.start_time_unix_nano, point.time_unix_nano) = (start, now);
        match (part, bound.as_deref()) {
            ("_sum", _) => point.sum = Some(value),
            ("_count", _) => point.count = value as u64,
            ("_bucket", Some(bound)) => {
                // These are running sums; OTLP has counts, and no bound for the last.
                let before: u64 = point.bucket_counts.iter().sum();
                point.bucket_counts.push((value as u64).saturating_sub(before));
                point.explicit_bounds.extend(bound.parse::<f64>().ok().filter(|bound| bound.is_finite()));
            }
            _ => {}
        }
    }

    fn move_to(&mut self, metric: Option<&mut Metric>) {
        let points = std::mem::take(&mut self.0);
        if let Some(Metric { data: Some(Data::Histogram(histogram)), .. }) = metric {
            histogram.data_points.extend(points.into_iter().map(|(labels, mut point)| {
                point.attributes = attributes(labels);
                point
            }));
        }
    }
}

struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (mut value, mut is_escaped, mut length) = (String::new(), false, 0);
            for c in after.chars() {
                length += c.len_utf8();
                match (is_escaped, c) {
                    (false, '\\') => {
                        is_escaped = true;
                        continue;
                    }
                    (false, '"') => break,
                    (true, 'n') => value.push('\n'),
                    (_, c) => value.push(c),
                }
                is_escaped = false;
            }
            labels.push((label.to_owned(), value));
            rest = after.get(length..)?;
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = rest.get(1..)?;
    }
    let value = rest.trim_start().split(' ').next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

fn attributes(labels: Vec<(String, String)>) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| attribute(name, text(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exposition_as_otlp() {
        let exposition = "# HELP a Counts things.\n# TYPE a counter\na_total{x=\"1\",y=\"q\\\"\\\\n\\nz\"} 5\na_total{x=\"2\"} 6\n\
            # HELP b Shows.\n# TYPE b gauge\nb 0.5\n# TYPE none gauge\n\
            # HELP h Times.\n# TYPE h histogram\nh_sum{k=\"v\"} 7.5\nh_count{k=\"v\"} 4\nh_bucket{le=\"1.0\",k=\"v\"} 1\n\
            h_bucket{le=\"2.0\",k=\"v\"} 3\nh_bucket{le=\"+Inf\",k=\"v\"} 4\n# TYPE build info\nbuild_info{version=\"1\"} 1\n# EOF\n";
        let all = metrics(exposition, 3, 9);
        let names: Vec<_> = all.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "h", "build"]);
        let Some(Data::Sum(sum)) = &all[0].data else { panic!("a counter") };
        assert!(sum.is_monotonic && all[0].description == "Counts things.");
        assert_eq!(sum.data_points.len(), 2);
        assert_eq!(sum.data_points[0].attributes[1], attribute("y", text("q\"\\n\nz")));
        assert_eq!((sum.data_points[1].start_time_unix_nano, sum.data_points[1].time_unix_nano), (3, 9));
        assert_eq!(sum.data_points[1].value, Some(Value::AsDouble(6.0)));
        let Some(Data::Histogram(histogram)) = &all[2].data else { panic!("a histogram") };
        let [point] = &histogram.data_points[..] else { panic!("one point") };
        assert_eq!((point.count, point.sum), (4, Some(7.5)));
        assert_eq!((&point.bucket_counts[..], &point.explicit_bounds[..]), (&[1, 2, 1][..], &[1.0, 2.0][..]));
        assert_eq!(point.attributes, [attribute("k", text("v"))]);
    }
}
