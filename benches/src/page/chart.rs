//! The chart: bars of throughput, each with a line from the least to the greatest round.

use crate::measurement::Spread;
use crate::results::{Results, Row, grouped};

struct Bar {
    label: String,
    spread: Spread,
    ours: bool,
}

const WIDTH: f64 = 760.0;
/// Where bars start, and the length of the longest.
const LEFT: f64 = 300.0;
const LONGEST: f64 = 370.0;
const HEIGHT: f64 = 26.0;
const HEAD: f64 = 44.0;

pub fn draw(results: &Results) -> String {
    let mut body = String::new();
    let mut top = 0.0;
    for (title, bars) in [("New jobs a second", new_jobs(results)), ("Replays a second", replays(results))] {
        body += &format!("<text class=\"title\" x=\"16\" y=\"{}\">{title}</text>\n", top + 28.0);
        top += HEAD;
        let greatest = bars.iter().map(|bar| bar.spread.greatest).fold(1.0, f64::max);
        for bar in &bars {
            body += &draw_bar(bar, top, LONGEST / greatest);
            top += HEIGHT;
        }
    }
    let height = top + 16.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <style>text {{ fill: #1f2937 }} .title {{ font-weight: bold; font-size: 15px }} .ours {{ fill: #2563eb }} \
         .other {{ fill: #9ca3af }} line {{ stroke: #1f2937 }} .ground {{ fill: #ffffff }}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n{body}</svg>\n"
    )
}

fn draw_bar(bar: &Bar, top: f64, scale: f64) -> String {
    let Bar { label, spread, ours } = bar;
    let (class, middle, text) = (if *ours { "ours" } else { "other" }, top + 9.0, top + 13.0);
    let (width, least, greatest) = (spread.median * scale, LEFT + spread.least * scale, LEFT + spread.greatest * scale);
    format!(
        "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{label}</text>\
         <rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"18\"/>\
         <line x1=\"{least:.1}\" y1=\"{middle}\" x2=\"{greatest:.1}\" y2=\"{middle}\"/>\
         <text x=\"{:.1}\" y=\"{text}\">{}</text>\n",
        LEFT - 8.0,
        greatest + 6.0,
        grouped(spread.median.round() as u64),
    )
}

/// The bars of the rows that were measured.
fn bars<'row>(results: &Results, rows: impl IntoIterator<Item = (&'row Row, String, bool)>) -> Vec<Bar> {
    let bar = |(row, label, ours): (&Row, String, bool)| {
        let spread = results.spread(row, |measurement| Some(measurement.per_second))?;
        Some(Bar { label, spread, ours })
    };
    rows.into_iter().filter_map(bar).collect()
}

fn new_jobs(results: &Results) -> Vec<Bar> {
    let mut rows = Vec::new();
    for (row, _) in &results.rows {
        match row {
            Row::Hapax { connections: 1 } => rows.push((row, "Hapax, 1 connection".to_owned(), true)),
            Row::Hapax { connections } => rows.push((row, format!("Hapax, {connections} connections"), true)),
            _ => {}
        }
    }
    if let Some(row @ Row::ByHand { clients }) = results.best(|row| matches!(row, Row::ByHand { .. })) {
        rows.push((row, format!("by hand, pgbench, {clients} clients (best)"), false));
    }
    if let Some(row @ Row::Tutorial { connections, .. }) = results.best(|row| matches!(row, Row::Tutorial { .. })) {
        rows.push((row, format!("tutorial, {connections} connections (best)"), false));
    }
    let mut peers: Vec<&str> = Vec::new();
    for (row, _) in &results.rows {
        if let Row::Peer { name, .. } = row
            && !peers.contains(&name.as_str())
        {
            peers.push(name);
        }
    }
    for peer in peers {
        let best = results.best(|row| matches!(row, Row::Peer { name, .. } if name == peer));
        if let Some(row @ Row::Peer { clients, .. }) = best {
            rows.push((row, format!("{peer}, {clients} clients (best)"), false));
        }
    }
    bars(results, rows)
}

fn replays(results: &Results) -> Vec<Bar> {
    let mut rows = Vec::new();
    for (row, _) in &results.rows {
        match row {
            Row::OneKey => rows.push((row, "Hapax, one key".to_owned(), true)),
            Row::ManyKeys { keys } => rows.push((row, format!("Hapax, {} keys", grouped(*keys)), true)),
            Row::Bare => rows.push((row, "a handler that does nothing".to_owned(), false)),
            _ => {}
        }
    }
    bars(results, rows)
}
