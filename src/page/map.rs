//! The map: its data, and the elements that the script draws into.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::text::{add, percent};
use super::{PageImages, PageInput, Section};

/// Cells on each side of the grid on which points are drawn.
const CELLS: f32 = 1000.0;

#[derive(Serialize)]
struct Data<'a> {
    /// The names of the classes that occur.
    classes: Vec<&'a str>,
    /// The class of each point.
    class: Vec<usize>,
    /// Its instance.
    id: Vec<u32>,
    pca: Vec<[u16; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tsne: Option<Vec<[u16; 2]>>,
}

pub(super) fn section(input: &PageInput<'_>, images: &PageImages) -> Option<Section> {
    let map = input.map.filter(|map| map.rows.len() > 1)?;
    let names: Vec<&str> = map.rows.iter().map(|&row| input.class_name(input.queries.labels[row])).collect();
    let mut classes = names.clone();
    classes.sort_unstable();
    classes.dedup();
    let class = names.iter().map(|name| classes.binary_search(name).unwrap_or(0)).collect();
    let data = Data {
        class,
        classes,
        id: map.rows.iter().map(|&row| input.queries.ids[row].0).collect(),
        pca: on_grid(&map.components),
        tsne: map.tsne.as_deref().map(on_grid),
    };
    // A class name may hold what would end the element.
    let json = serde_json::to_string(&data).unwrap_or_default().replace('<', "\\u003c");
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
    html.push_str("<div class=\"bar-head\"><div class=\"segments\" role=\"group\" aria-label=\"Projection\" id=\"projections\">");
    if map.tsne.is_some() {
        html.push_str("<button type=\"button\" data-map=\"tsne\" aria-pressed=\"true\">t-SNE</button>");
    }
    add!(
        html,
        "<button type=\"button\" data-map=\"pca\" aria-pressed=\"{}\">PCA</button></div>",
        map.tsne.is_none()
    );
    if images.sprite.is_some() {
        html.push_str("<div class=\"segments\" role=\"group\" aria-label=\"Drawn as\" id=\"marks\"><button type=\"button\" data-mark=\"points\" aria-pressed=\"true\">points</button><button type=\"button\" data-mark=\"images\" aria-pressed=\"false\">images</button></div>");
    }
    html.push_str("<span id=\"map-readout\" role=\"status\">Point at the map, or go through it with the arrow keys.</span></div>\n<div class=\"plane\"><canvas id=\"map-canvas\" tabindex=\"0\" role=\"img\" aria-label=\"Map of the queries; the left and right arrow keys go from point to point\"></canvas><div id=\"map-card\" hidden><canvas width=\"96\" height=\"96\"></canvas><b></b><span></span></div></div>\n<ul id=\"map-legend\" class=\"swatches\"></ul>\n");
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

/// The points in a square, both axes by one scale.
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
