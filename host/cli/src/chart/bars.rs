//! Bars beside names: how several things compare by one or more measures.

use super::{colour, nice_step, plain};
use crate::report::{CSS, escape};
use std::fmt::Write;

const WIDTH: f64 = 640.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 34.0;
const RIGHT: f64 = 44.0;
const LETTER: f64 = 6.6;
const BAR: f64 = 8.0;
/// Between one name's bars and the next one's.
const GAP: f64 = 8.0;
const TICKS: f64 = 6.0;

/// Bars from zero to the right.
pub(crate) struct Bars {
    pub(crate) title: String,
    /// What is measured; one bar of each to a name.
    pub(crate) measures: Vec<String>,
    pub(crate) rows: Vec<(String, Vec<f64>)>,
    /// Where a line marks what is compared with.
    pub(crate) mark: f64,
}

impl Bars {
    /// A file of its own.
    pub(crate) fn file(&self) -> String {
        let row = self.measures.len() as f64 * BAR + GAP;
        let bottom = TOP + self.rows.len() as f64 * row;
        let longest = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let left = longest as f64 * LETTER + 16.0;
        let values = || self.rows.iter().flat_map(|(_, values)| values).copied().filter(|value| value.is_finite());
        let most = values().fold(self.mark, f64::max);
        let x = |value: f64| left + (WIDTH - left - RIGHT) * (value / most).clamp(0.0, 1.0);
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {}' role='img' width='100%'>\
             <style>{CSS} svg {{ background: var(--bg); font-family: system-ui, sans-serif; }}</style><title>{title}</title>\
             <text x='12' y='20' fill='var(--ink)' font-size='14' font-weight='600'>{title}</text>",
            bottom + BOTTOM,
            title = escape(&self.title)
        );
        let mut at = 12.0;
        for (look, measure) in self.measures.iter().enumerate() {
            let _ = write!(
                svg,
                "<rect x='{at:.1}' y='32' width='12' height='{BAR}' fill='{}'/>\
                 <text x='{:.1}' y='40' fill='var(--soft)' font-size='12'>{}</text>",
                colour(look),
                at + 17.0,
                escape(measure)
            );
            at += 34.0 + measure.chars().count() as f64 * LETTER;
        }
        let step = nice_step(most / TICKS);
        for value in (0..).map(|tick| f64::from(tick) * step).take_while(|value| *value <= most) {
            let _ = write!(
                svg,
                "<path d='M{at:.1} {TOP}V{bottom:.1}' stroke='var(--line)' stroke-width='.7'/>\
                 <text x='{at:.1}' y='{:.1}' text-anchor='middle' fill='var(--soft)' font-size='11'>{}</text>",
                bottom + 16.0,
                plain(value),
                at = x(value)
            );
        }
        for (index, (name, values)) in self.rows.iter().enumerate() {
            let top = TOP + index as f64 * row + GAP / 2.0;
            let _ = write!(
                svg,
                "<text x='{:.1}' y='{:.1}' text-anchor='end' fill='var(--ink)' font-size='12'>{}</text>",
                left - 6.0,
                top + values.len() as f64 * BAR / 2.0 + 4.0,
                escape(name)
            );
            for (look, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
                let y = top + look as f64 * BAR;
                let _ = write!(
                    svg,
                    "<rect x='{left:.1}' y='{y:.1}' width='{:.1}' height='{:.1}' fill='{}'/>\
                     <text x='{:.1}' y='{:.1}' fill='var(--soft)' font-size='9'>{value:.2}</text>",
                    x(*value) - left,
                    BAR - 1.0,
                    colour(look),
                    x(*value) + 4.0,
                    y + BAR - 1.0
                );
            }
        }
        let _ = writeln!(
            svg,
            "<path d='M{at:.1} {TOP}V{bottom:.1}' stroke='var(--ink)' stroke-width='1.2' stroke-dasharray='5 3'/></svg>",
            at = x(self.mark)
        );
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values_and_the_file_is_xml() {
        let rows = vec![("a<b".to_owned(), vec![2.0, 1.0]), ("c".to_owned(), vec![0.5, f64::NAN])];
        let measures = vec!["one".to_owned(), "other".to_owned()];
        let file = Bars { title: "T & U".to_owned(), measures, rows, mark: 1.0 }.file();
        let widths: Vec<f64> = file
            .split("<rect ")
            .skip(3)
            .map(|bar| bar.split_once("width='").unwrap().1.split_once('\'').unwrap().0.parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 3, "what is no number has no bar: {file}");
        assert!((widths[0] - 2.0 * widths[1]).abs() < 0.2 && (widths[1] - 2.0 * widths[2]).abs() < 0.2, "{widths:?}");
        assert!(file.contains("a&lt;b") && file.contains("T &amp; U"));
        // Of attributes, HTML would take some without quotes; a viewer of images would not.
        for tag in file.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
            assert!(tag.split('=').skip(1).all(|value| value.starts_with('\'')), "<{tag}>");
        }
    }
}
