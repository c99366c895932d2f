//! Charts of points and lines, as SVG in the colours of the reports' page.

use crate::report::escape;
use std::fmt::Write;

mod bars;

pub(crate) use bars::Bars;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;
/// A letter's width, on average.
const LETTER: f64 = 6.0;

/// Lines over two axes.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

/// One axis, and what is written at it.
pub(crate) struct Axis {
    label: String,
    from: f64,
    to: f64,
    is_log: bool,
    ticks: Vec<(f64, String)>,
}

/// Points that belong together.
pub(crate) struct Line {
    /// Empty: nothing in the legend.
    pub(crate) name: String,
    /// Its colour, its dashes and the shape of its points: the same number looks the same in each chart.
    pub(crate) look: usize,
    pub(crate) points: Vec<(f64, f64)>,
    /// A step from each point to the next, without marks: a distribution.
    pub(crate) is_stepped: bool,
}

impl Axis {
    /// From the least to the greatest value, in even steps.
    pub(crate) fn linear(label: &str, from: f64, to: f64) -> Self {
        let to = if to > from { to } else { from + 1.0 };
        let step = nice_step((to - from) / 5.0);
        let first = (from / step).ceil() as i64;
        let values = (first..).map(|i| i as f64 * step).take_while(|value| *value <= to + step * 1e-6);
        let ticks = values.map(|value| (value, plain(value))).collect();
        Self { label: label.to_owned(), from, to, is_log: false, ticks }
    }

    /// On a logarithmic scale; all values are over 0.
    pub(crate) fn log(label: &str, from: f64, to: f64, ticks: Vec<(f64, String)>) -> Self {
        Self { label: label.to_owned(), from, to: to.max(from * 1.01), is_log: true, ticks }
    }

    /// Names in the place of numbers, from 0 on.
    pub(crate) fn names(label: &str, names: &[String]) -> Self {
        let ticks = names.iter().enumerate().map(|(index, name)| (index as f64, name.clone())).collect();
        Self { label: label.to_owned(), from: -0.5, to: names.len() as f64 - 0.5, is_log: false, ticks }
    }

    fn share(&self, value: f64) -> f64 {
        let at = |value: f64| if self.is_log { value.max(f64::MIN_POSITIVE).ln() } else { value };
        ((at(value) - at(self.from)) / (at(self.to) - at(self.from))).clamp(0.0, 1.0)
    }
}

impl Chart {
    /// A card of a page: the chart and its legend.
    pub(crate) fn card(&self) -> String {
        let named = self.lines.iter().filter(|line| !line.name.is_empty());
        let legend: String = named
            .map(|line| {
                let mark = mark(line.look, 8.0, 6.0);
                let dashes = dashes(line.look);
                let colour = colour(line.look);
                format!(
                    "<li><svg width='18' height='12' aria-hidden='true'><path d='M0 6H18' stroke='{colour}' stroke-width='2' {dashes} />{}</svg> {}",
                    if line.is_stepped { String::new() } else { mark },
                    escape(&line.name)
                )
            })
            .collect();
        format!("<figure class=card>{}<ul class=legend>{legend}</ul></figure>", self.svg())
    }

    fn svg(&self) -> String {
        let left = self.left();
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' width='100%'><title>{title}</title>\
             <text x='{left}' y='18' fill='var(--ink)' font-size='14' font-weight='600'>{title}</text>",
            title = escape(&self.title)
        );
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, text) in &self.y.ticks {
            let y = self.y_of(*value);
            let _ = write!(
                svg,
                "<path d='M{left} {y:.1}H{right}' stroke='var(--line)' stroke-width='.7'/>\
                 <text x='{}' y='{:.1}' text-anchor='end' fill='var(--soft)' font-size='11'>{}</text>",
                left - 6.0,
                y + 4.0,
                escape(text)
            );
        }
        for (value, text) in &self.x.ticks {
            let _ = write!(
                svg,
                "<text x='{:.1}' y='{}' text-anchor='middle' fill='var(--soft)' font-size='11'>{}</text>",
                self.x_of(*value),
                bottom + 15.0,
                escape(text)
            );
        }
        let _ = write!(
            svg,
            "<path d='M{left} {TOP}V{bottom}H{right}' fill='none' stroke='var(--soft)'/>\
             <text x='{}' y='{}' text-anchor='middle' fill='var(--soft)' font-size='12'>{}</text>\
             <text x='12' y='{}' text-anchor='middle' fill='var(--soft)' font-size='12' transform='rotate(-90 12 {})'>{}</text>",
            (left + right) / 2.0,
            HEIGHT - 8.0,
            escape(&self.x.label),
            (TOP + bottom) / 2.0,
            (TOP + bottom) / 2.0,
            escape(&self.y.label)
        );
        self.lines.iter().for_each(|line| self.draw(line, &mut svg));
        svg + "</svg>"
    }

    fn draw(&self, line: &Line, svg: &mut String) {
        let mut path = String::new();
        let mut marks = String::new();
        let mut last = None;
        for (x, y) in line.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()) {
            let (at_x, at_y) = (self.x_of(*x), self.y_of(*y));
            let _ = match last {
                None => write!(path, "M{at_x:.1} {at_y:.1}"),
                Some(_) if line.is_stepped => write!(path, "H{at_x:.1}V{at_y:.1}"),
                Some(()) => write!(path, "L{at_x:.1} {at_y:.1}"),
            };
            last = Some(());
            if !line.is_stepped {
                marks.push_str(&mark(line.look, at_x, at_y));
            }
        }
        let (colour, dashes) = (colour(line.look), dashes(line.look));
        let _ = write!(svg, "<path d='{path}' fill='none' stroke='{colour}' stroke-width='1.8' {dashes} />{marks}");
    }

    fn x_of(&self, value: f64) -> f64 {
        let left = self.left();
        left + (WIDTH - left - RIGHT) * self.x.share(value)
    }

    /// Wide enough for what is written at the vertical axis.
    fn left(&self) -> f64 {
        let longest = self.y.ticks.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0);
        LEFT.max(longest as f64 * LETTER + 12.0)
    }

    fn y_of(&self, value: f64) -> f64 {
        TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - self.y.share(value))
    }
}

/// How a distribution goes: for each value, the share of those that are no greater.
pub(crate) fn distribution(mut values: Vec<f64>) -> Vec<(f64, f64)> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    values.into_iter().enumerate().map(|(index, value)| (value, (index + 1) as f64 / count)).collect()
}

const COLOURS: usize = 8;

fn colour(look: usize) -> String {
    format!("var(--line{})", look % COLOURS)
}

/// So that colour is not all that tells.
fn dashes(look: usize) -> &'static str {
    match look / COLOURS {
        0 => "",
        _ => "stroke-dasharray='5 3'",
    }
}

fn mark(look: usize, x: f64, y: f64) -> String {
    let fill = colour(look);
    match look % 4 {
        0 => format!("<circle cx='{x:.1}' cy='{y:.1}' r='3.4' fill='{fill}'/>"),
        1 => format!("<rect x='{:.1}' y='{:.1}' width='6' height='6' fill='{fill}'/>", x - 3.0, y - 3.0),
        2 => format!("<path d='M{x:.1} {:.1}l4 7h-8z' fill='{fill}'/>", y - 4.0),
        _ => format!(
            "<path d='M{x:.1} {:.1}l4 4l-4 4l-4 -4z' fill='var(--card)' stroke='{fill}' stroke-width='1.6'/>",
            y - 4.0
        ),
    }
}

/// 1, 2 or 5 times a power of ten, no less than that.
fn nice_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|factor| factor * power).find(|step| *step >= least).unwrap_or(10.0 * power)
}

/// A number without digits that say nothing.
fn plain(value: f64) -> String {
    let rounded = (value * 1e6).round() / 1e6;
    if rounded == 0.0 { "0".to_owned() } else { rounded.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_marked_at_round_numbers() {
        for (from, to, expected) in [
            (0.0, 1.0, &["0", "0.2", "0.4", "0.6", "0.8", "1"][..]),
            (-1.0, 1.0, &["-1", "-0.5", "0", "0.5", "1"]),
            (0.0, 180.0, &["0", "50", "100", "150"]),
            (3.0, 3.0, &["3", "3.2", "3.4", "3.6", "3.8", "4"]),
        ] {
            let ticks: Vec<String> = Axis::linear("", from, to).ticks.into_iter().map(|(_, text)| text).collect();
            assert_eq!(ticks, expected, "{from} to {to}");
        }
    }

    #[test]
    fn points_lie_where_their_values_say_and_what_is_none_is_left_out() {
        let points = vec![(100.0, 0.0), (1_000.0, f64::NAN), (10_000.0, 1.0)];
        let line = Line { name: "<ours>".to_owned(), look: 0, points, is_stepped: false };
        let x = Axis::log("rate", 100.0, 10_000.0, vec![(1_000.0, "1k".to_owned())]);
        let chart = Chart { title: "T".to_owned(), x, y: Axis::linear("share", 0.0, 1.0), lines: vec![line] };
        let card = chart.card();
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        assert!(card.contains(&format!("M{LEFT:.1} {bottom:.1}L{right:.1} {TOP:.1}")), "{card}");
        assert!(card.contains(&format!("<text x='{:.1}'", (LEFT + right) / 2.0)), "in the middle of its scale");
        assert!(card.contains("&lt;ours&gt;") && !card.contains("NaN"));
        assert_eq!(distribution(vec![3.0, 1.0, f64::INFINITY, 2.0, 2.0])[1..3], [(2.0, 0.5), (2.0, 0.75)]);
    }
}
