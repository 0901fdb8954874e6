//! Map of sampled features on a plane, by principal components and by t-SNE.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::text::{add, percent};
use super::{PageImages, PageInput, Section};
use crate::eval::EvalError;
use crate::feature_table::FeatureTable;
use crate::rng::{Purpose, Stream};

/// Perplexity of t-SNE: about the number of neighbours that matter for a point.
const PERPLEXITY: f32 = 30.0;
/// Number of points below which t-SNE shows no more than the components.
const FEWEST_POINTS: usize = 100;
/// Steps of t-SNE.
const EPOCHS: usize = 750;
/// Accuracy of Barnes and Hut's sums (van der Maaten 2014 uses 0.5).
const THETA: f32 = 0.5;
/// Spread of the points at the start of t-SNE (Kobak and Berens 2019).
const FIRST_SPREAD: f32 = 1e-4;
/// Rounds of the iteration that finds the components.
const ROUNDS: usize = 60;
/// Cells on each side of the grid that points are drawn on.
const CELLS: f32 = 1000.0;

/// Points on a plane for some rows of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingMap {
    /// Rows of the points.
    pub rows: Vec<usize>,
    /// `[rows]`: first two principal components.
    pub components: Vec<[f32; 2]>,
    /// Fraction of the variance that each component explains.
    pub explained: [f64; 2],
    /// `[rows]`: t-SNE, started from the components; `None` with few points.
    pub tsne: Option<Vec<[f32; 2]>>,
}

/// Maps a uniform sample of at most `most` labelled rows, or of all rows if none has a label.
///
/// # Errors
/// If a feature is not finite.
pub fn map(table: &FeatureTable, most: usize) -> Result<EmbeddingMap, EvalError> {
    table.check()?;
    let is_unlabelled = table.labels.iter().all(Option::is_none);
    let mut rows: Vec<usize> =
        (0..table.len()).filter(|&row| is_unlabelled || table.labels[row].is_some()).collect();
    if rows.len() > most {
        Stream::new(0, Purpose::MapSample, 0, 0).shuffle(&mut rows);
        rows.truncate(most);
        rows.sort_unstable();
    }
    let (components, explained) = principal_components(table, &rows);
    let tsne = (rows.len() >= FEWEST_POINTS).then(|| tsne(table, &rows, &components));
    Ok(EmbeddingMap { rows, components, explained, tsne })
}

/// Computes the first two principal components, by orthogonal iteration from a fixed start.
fn principal_components(table: &FeatureTable, rows: &[usize]) -> (Vec<[f32; 2]>, [f64; 2]) {
    let dim = table.meta.dim;
    let mut mean = vec![0.0_f64; dim];
    for &row in rows {
        mean.iter_mut().zip(table.feature(row)).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    mean.iter_mut().for_each(|sum| *sum /= rows.len().max(1) as f64);
    let centred: Vec<Vec<f64>> = rows
        .iter()
        .map(|&row| table.feature(row).iter().zip(&mean).map(|(x, mean)| f64::from(*x) - mean).collect())
        .collect();
    let mut stream = Stream::new(0, Purpose::MapAxes, 0, 0);
    let mut axes: [Vec<f64>; 2] = std::array::from_fn(|_| (0..dim).map(|_| stream.normal()).collect());
    for _ in 0..ROUNDS {
        let mut next = [vec![0.0; dim], vec![0.0; dim]];
        for row in &centred {
            for (next, axis) in next.iter_mut().zip(&axes) {
                let along = dot(row, axis);
                next.iter_mut().zip(row).for_each(|(sum, x)| *sum += along * x);
            }
        }
        let [mut first, mut second] = next;
        to_unit(&mut first);
        let along = dot(&first, &second);
        second.iter_mut().zip(&first).for_each(|(x, first)| *x -= along * first);
        to_unit(&mut second);
        axes = [first, second];
    }
    for axis in &mut axes {
        // The sign of an axis is arbitrary; its largest number is made positive.
        let largest = axis.iter().copied().fold(0.0_f64, |a, x| if x.abs() > a.abs() { x } else { a });
        if largest < 0.0 {
            axis.iter_mut().for_each(|x| *x = -*x);
        }
    }
    let points: Vec<[f64; 2]> = centred.iter().map(|row| [dot(row, &axes[0]), dot(row, &axes[1])]).collect();
    let total: f64 = centred.iter().map(|row| dot(row, row)).sum();
    let explained =
        [0, 1].map(|at| points.iter().map(|point| point[at].powi(2)).sum::<f64>() / total.max(1e-300));
    (points.into_iter().map(|point| point.map(|x| x as f32)).collect(), explained)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn to_unit(axis: &mut [f64]) {
    let length = dot(axis, axis).sqrt();
    if length > 0.0 {
        axis.iter_mut().for_each(|x| *x /= length);
    }
}

/// # Source
/// Van der Maaten and Hinton 2008, with the components as the start (Kobak and Berens 2019).
fn tsne(table: &FeatureTable, rows: &[usize], components: &[[f32; 2]]) -> Vec<[f32; 2]> {
    let vectors: Vec<&[f32]> = rows.iter().map(|&row| table.feature(row)).collect();
    let spread = components.iter().map(|point| point[0].powi(2)).sum::<f32>() / rows.len() as f32;
    let scale = FIRST_SPREAD / spread.sqrt().max(f32::MIN_POSITIVE);
    let start: Vec<f32> = components.iter().flatten().map(|x| x * scale).collect();
    let distance =
        |a: &&[f32], b: &&[f32]| a.iter().zip(*b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    let mut fit: bhtsne::tSNE<'_, f32, &[f32]> = bhtsne::tSNE::new(&vectors);
    fit.perplexity(PERPLEXITY).epochs(EPOCHS).initial_embedding(start).barnes_hut(THETA, distance);
    fit.embedding().chunks_exact(2).map(|point| [point[0], point[1]]).collect()
}

/// Renders the map: its data, and the elements that the script draws into.
pub(super) fn section(input: &PageInput<'_>, images: &PageImages) -> Option<Section> {
    let map = input.map.filter(|map| map.rows.len() > 1)?;
    let names: Vec<&str> = map.rows.iter().map(|&row| input.class_name(input.queries.labels[row])).collect();
    let mut classes = names.clone();
    classes.sort_unstable();
    classes.dedup();
    let class: Vec<usize> = names.iter().map(|name| classes.binary_search(name).unwrap_or(0)).collect();
    let id: Vec<u32> = map.rows.iter().map(|&row| input.queries.ids[row].0).collect();
    // Data for the script: names of the occurring classes, and for each point its class, instance and coordinates.
    let mut data = json!({ "classes": classes, "class": class, "id": id, "pca": on_grid(&map.components) });
    if let Some(tsne) = &map.tsne {
        data["tsne"] = json!(on_grid(tsne));
    }
    // A class name may contain a tag that would end the element.
    let json = data.to_string().replace('<', "\\u003c");
    let mut html = String::new();
    add!(
        html,
        "<p class=\"about\">{} queries on a plane. The two principal components hold {} of the variance{}</p>\n",
        map.rows.len(),
        percent(map.explained.iter().sum()),
        if map.tsne.is_some() {
            "; t-SNE keeps neighbours together, and its distances across the map mean little."
        } else {
            "."
        }
    );
    html.push_str(
        "<div class=\"bar-head\"><div class=\"segments\" role=\"group\" aria-label=\"Projection\" \
         id=\"projections\">",
    );
    if map.tsne.is_some() {
        html.push_str("<button type=\"button\" data-map=\"tsne\" aria-pressed=\"true\">t-SNE</button>");
    }
    add!(
        html,
        "<button type=\"button\" data-map=\"pca\" aria-pressed=\"{}\">PCA</button></div>",
        map.tsne.is_none()
    );
    if images.sprite.is_some() {
        html.push_str(
            "<div class=\"segments\" role=\"group\" aria-label=\"Drawn as\" id=\"marks\">\
             <button type=\"button\" data-mark=\"points\" aria-pressed=\"true\">points</button>\
             <button type=\"button\" data-mark=\"images\" aria-pressed=\"false\">images</button>\
             </div>",
        );
    }
    html.push_str(
        "<span id=\"map-readout\" role=\"status\">Point at the map, or go through it with the \
         arrow keys.</span></div>\n<div class=\"plane\">\
         <canvas id=\"map-canvas\" tabindex=\"0\" role=\"img\" aria-label=\"Map of the queries; \
         the left and right arrow keys go from point to point\"></canvas>\
         <div id=\"map-card\" hidden><canvas width=\"96\" height=\"96\"></canvas><b></b><span>\
         </span></div></div>\n<ul id=\"map-legend\" class=\"swatches\"></ul>\n",
    );
    if let Some(sprite) = &images.sprite {
        add!(
            html,
            "<img id=\"map-sprite\" hidden alt=\"\" src=\"data:image/jpeg;base64,{}\">\n",
            STANDARD.encode(sprite)
        );
    }
    add!(html, "<script type=\"application/json\" id=\"map-data\">{json}</script>\n");
    Some(Section { id: "map", title: "Map", html })
}

/// Scales the points into a square, with the same scale for both axes.
fn on_grid(points: &[[f32; 2]]) -> Vec<[u16; 2]> {
    let edge = |at: usize, pick: fn(f32, f32) -> f32, start: f32| {
        points.iter().map(|point| point[at]).filter(|x| x.is_finite()).fold(start, pick)
    };
    let low = [0, 1].map(|at| edge(at, f32::min, f32::INFINITY));
    let high = [0, 1].map(|at| edge(at, f32::max, f32::NEG_INFINITY));
    let extent = (high[0] - low[0]).max(high[1] - low[1]).max(f32::MIN_POSITIVE);
    let place = |point: &[f32; 2]| {
        [0, 1].map(|at| {
            let middle = (low[at] + high[at]) / 2.0;
            (((point[at] - middle) / extent + 0.5) * CELLS).clamp(0.0, CELLS) as u16
        })
    };
    points.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{Shape, draw_tables};

    /// Points on a line in space with a little noise across: the first component is the position on the line.
    #[test]
    fn the_first_component_is_the_direction_of_the_largest_spread() {
        let (mut table, _) = draw_tables(Shape::Uniform, 80, 1, 3, 1);
        let mut stream = Stream::new(2, Purpose::Test, 0, 0);
        let along: Vec<f64> = (0..80).map(|_| stream.normal()).collect();
        let across: Vec<f64> = (0..80).map(|_| 0.1 * stream.normal()).collect();
        table.features = along
            .iter()
            .zip(&across)
            .flat_map(|(a, c)| [0.6 * a - 0.8 * c, 0.8 * a + 0.6 * c, 5.0].map(|x| x as f32))
            .collect();
        table.meta.unit_length = false;
        let map = map(&table, 1000).expect("mapped");
        assert!(map.tsne.is_none() && map.rows.len() == 80);
        assert!(map.explained[0] > 0.95 && map.explained.iter().sum::<f64>() > 1.0 - 1e-6);
        let mean = along.iter().sum::<f64>() / 80.0;
        let off =
            map.components.iter().zip(&along).map(|(point, a)| (f64::from(point[0]) - (a - mean)).abs());
        assert!(off.fold(0.0, f64::max) < 0.1);
    }

    /// Clusters stay together: the nearest point on the plane nearly always has the same class.
    #[test]
    fn t_sne_keeps_clusters_together() {
        let (mut table, _) = draw_tables(Shape::Uniform, 300, 1, 16, 1);
        for (row, feature) in table.features.chunks_exact_mut(16).enumerate() {
            feature.iter_mut().for_each(|x| *x *= 0.3);
            feature[row % 3] += 1.0;
        }
        table.meta.unit_length = false;
        let map = map(&table, 250).expect("mapped");
        assert_eq!(map.rows.len(), 250);
        let points = map.tsne.expect("enough points");
        let distance = |a: [f32; 2], b: [f32; 2]| (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
        let same = (0..250).filter(|&at| {
            let others = (0..250).filter(|&other| other != at);
            let nearest = others
                .min_by(|&a, &b| distance(points[at], points[a]).total_cmp(&distance(points[at], points[b])));
            nearest.is_some_and(|nearest| map.rows[nearest] % 3 == map.rows[at] % 3)
        });
        assert!(same.count() > 240);
    }
}
