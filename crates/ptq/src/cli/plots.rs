//! Plots as SVG for a page that is read in the light and in the dark: every colour here is one that the page's style sheet knows and
//! replaces where the reader prefers dark.

use super::Failure;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, Rectangle};
use plotters::prelude::{Cartesian2d, IntoFont, IntoLogRange, SVGBackend};
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, RGBColor, TRANSPARENT, TextStyle};
use std::fmt::Display;

/// Words, axes.
pub(super) const INK: RGBColor = RGBColor(0x3d, 0x44, 0x4d);
/// Lines behind the data.
pub(super) const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
/// Of data, in the order in which they are given out.
pub(super) const SERIES: [RGBColor; 6] = [
    RGBColor(0x0b, 0x6b, 0xcb),
    RGBColor(0xc4, 0x4f, 0x0c),
    RGBColor(0x1a, 0x7f, 0x38),
    RGBColor(0x83, 0x50, 0xdf),
    RGBColor(0xb0, 0x20, 0x7a),
    RGBColor(0x6b, 0x73, 0x00),
];
/// From the least to the most, alike on light and dark paper.
pub(super) const RAMP: [RGBColor; 5] = [
    RGBColor(0x44, 0x01, 0x54),
    RGBColor(0x3b, 0x52, 0x8b),
    RGBColor(0x21, 0x91, 0x8c),
    RGBColor(0x5e, 0xc9, 0x62),
    RGBColor(0xfd, 0xe7, 0x25),
];
/// What is not finite.
pub(super) const BROKEN: RGBColor = RGBColor(0xd1, 0x24, 0x2f);

/// What a plot is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axes<'a> {
    /// Along.
    pub(super) x: &'a str,
    /// Upwards; none where the caption says it.
    pub(super) y: &'a str,
    /// Width and height.
    pub(super) size: (u32, u32),
}

/// Points `(x, y)` of one line, in one of [`SERIES`].
pub(super) type Line = (usize, Vec<(f64, f64)>);

type Area<'s> = DrawingArea<SVGBackend<'s>, Shift>;
type Chart<'a, 's, Y> = ChartContext<'a, SVGBackend<'s>, Cartesian2d<RangedCoordf64, Y>>;

/// From here on values are drawn in powers of ten.
const WIDE: f64 = 20.0;

/// Lines over whole numbers: upwards from zero, or where the largest value is far above the least one in powers of ten. Points that
/// are not above zero are left out.
pub(super) fn lines(axes: &Axes<'_>, lines: &[Line]) -> Result<String, Failure> {
    let points = || lines.iter().flat_map(|(_, points)| points).filter(|point| is_drawn(point));
    let (lowest, highest) =
        points().fold((f64::INFINITY, 0.0_f64), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let along = -0.5..points().fold(0.0_f64, |last, p| last.max(p.0)) + 0.5;
    svg(axes.size, |area| {
        if highest > WIDE * lowest {
            let decade = |value: f64| 10_f64.powf(value);
            let upwards = decade(lowest.log10().floor())..decade((1.02 * highest).log10().ceil());
            draw_lines(builder(area, axes, along, upwards.log_scale())?, lines)
        } else {
            let top = if highest > 0.0 { 1.08 * highest } else { 1.0 };
            draw_lines(builder(area, axes, along, 0.0..top)?, lines)
        }
    })
}

fn is_drawn((_, y): &(f64, f64)) -> bool {
    *y > 0.0 && y.is_finite()
}

fn draw_lines<'a, 's, Y>(mut chart: Chart<'a, 's, Y>, lines: &[Line]) -> Result<(), Failure>
where
    Y: Ranged<ValueType = f64>,
{
    for (series, line) in lines {
        let colour = SERIES[series % SERIES.len()];
        let points: Vec<(f64, f64)> = line.iter().filter(|point| is_drawn(point)).copied().collect();
        if points.len() <= 64 {
            let dots = points.iter().map(|&point| Circle::new(point, 2, colour.filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2))).map_err(failed)?;
    }
    Ok(())
}

/// A bar from zero for each whole number, in the colour of what is not finite where there is no value.
pub(super) fn bars(axes: &Axes<'_>, values: &[Option<f64>]) -> Result<String, Failure> {
    let highest = values.iter().flatten().copied().fold(0.0, f64::max);
    let highest = if highest > 0.0 { 1.05 * highest } else { 1.0 };
    svg(axes.size, |area| {
        let mut chart = builder(area, axes, -0.6..values.len() as f64 - 0.4, 0.0..highest)?;
        let bars = values.iter().enumerate().map(|(index, value)| {
            let (middle, colour) = (index as f64, value.map_or(BROKEN, |_| SERIES[0]));
            let ends = [(middle - 0.35, 0.0), (middle + 0.35, value.unwrap_or(highest))];
            Rectangle::new(ends, colour.filled())
        });
        chart.draw_series(bars).map_err(failed)?;
        Ok(())
    })
}

/// A row of cells upwards for each block, a cell for some steps of it; `value` is from 0 to 1, none is not finite. `steps` is the
/// number of steps that a row stands for.
pub(super) fn cells(axes: &Axes<'_>, steps: usize, rows: &[Vec<Option<f64>>]) -> Result<String, Failure> {
    svg(axes.size, |area| {
        let upwards = -0.5..rows.len() as f64 - 0.5;
        let mut chart = builder(area, axes, 0.0..steps as f64, upwards)?;
        for (row, values) in rows.iter().enumerate() {
            let wide = steps as f64 / values.len().max(1) as f64;
            let cells = values.iter().enumerate().map(|(at, value)| {
                let ends = [(at as f64 * wide, row as f64 - 0.5), ((at + 1) as f64 * wide, row as f64 + 0.5)];
                Rectangle::new(ends, value.map_or(BROKEN, ramp).filled())
            });
            chart.draw_series(cells).map_err(failed)?;
        }
        Ok(())
    })
}

/// A colour between those of [`RAMP`].
fn ramp(value: f64) -> RGBColor {
    let at = value.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let below = (at.floor() as usize).min(RAMP.len() - 2);
    let (share, from, to) = (at - below as f64, RAMP[below], RAMP[below + 1]);
    let mixed = |a: u8, b: u8| (f64::from(a) + share * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mixed(from.0, to.0), mixed(from.1, to.1), mixed(from.2, to.2))
}

/// A drawing as SVG without the name of its language, which a page does not need.
fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Result<(), Failure>) -> Result<String, Failure> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(text.replace(" xmlns=\"http://www.w3.org/2000/svg\"", " role=\"img\""))
}

fn builder<'a, 's, Y>(
    area: &Area<'s>,
    axes: &Axes<'_>,
    along: std::ops::Range<f64>,
    upwards: Y,
) -> Result<Chart<'a, 's, Y::CoordDescType>, Failure>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let font = |size: u32| TextStyle::from(("sans-serif", size).into_font()).color(&INK);
    let wide = axes.size.0 > 500;
    let mut chart = ChartBuilder::on(area)
        .margin(4)
        .margin_right(10)
        .x_label_area_size(34)
        .y_label_area_size(if axes.y.is_empty() { 46 } else { 62 })
        .build_cartesian_2d(along, upwards)
        .map_err(failed)?;
    let whole = |x: &f64| if x.fract() == 0.0 { format!("{x}") } else { String::new() };
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .axis_desc_style(font(12).pos(Pos::new(HPos::Center, VPos::Center)))
        .x_labels(if wide { 16 } else { 7 })
        .y_labels(if wide { 7 } else { 5 })
        .x_label_formatter(&whole)
        .y_label_formatter(&|y| short(*y))
        .label_style(font(11))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .disable_x_mesh()
        .draw()
        .map_err(failed)?;
    Ok(chart)
}

/// A number at an axis.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (1e-3..1e4).contains(&size) {
        // Three digits, and no zeros that say nothing.
        let digits = if value == 0.0 { 0 } else { (2 - size.log10().floor() as i32).max(0) as usize };
        let text = format!("{value:.digits$}");
        return if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').into()
        } else {
            text
        };
    }
    format!("{value:.0e}")
}

fn failed(error: impl Display) -> Failure {
    Failure::other(format!("a plot could not be drawn: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXES: Axes<'_> = Axes { x: "block", y: "KL", size: (400, 200) };

    #[test]
    fn numbers_at_axes_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.05, "0.05"),
            (0.123, "0.123"),
            (12.5, "12.5"),
            (250.0, "250"),
            (0.015, "0.015"),
            (0.0025, "0.0025"),
            (0.0004, "4e-4"),
            (100_000.0, "1e5"),
        ] {
            assert_eq!(short(value), expected);
        }
    }

    /// Whatever is to be drawn: nothing, one point, what is not above zero.
    #[test]
    fn every_plot_is_one_drawing_without_references() {
        let drawn = [
            lines(&AXES, &[]),
            lines(&AXES, &[(0, vec![(0.0, 0.5)]), (7, vec![])]),
            lines(&AXES, &[(1, vec![(0.0, 0.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 3e5)])]),
            bars(&AXES, &[]),
            bars(&AXES, &[Some(0.0), None, Some(2.0)]),
            cells(&AXES, 5, &[]),
            cells(&AXES, 5, &[vec![Some(0.0), None, Some(1.0)], vec![]]),
        ];
        for svg in drawn {
            let svg = svg.unwrap_or_else(|e| panic!("{e:?}"));
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
            assert!(!svg.contains("http") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn the_ramp_goes_from_end_to_end() {
        assert_eq!((ramp(0.0), ramp(1.0), ramp(0.5)), (RAMP[0], RAMP[4], RAMP[2]));
        assert_eq!((ramp(-3.0), ramp(7.0)), (RAMP[0], RAMP[4]));
    }
}
