//! Example queries with their nearest neighbours: the surest right votes, the surest wrong ones, and random ones.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use strum::VariantArray;

use super::text::{add, breakable, escape, grouped, percent};
use super::{PageImages, PageInput, Section};
use crate::eval::{Thumbnails, vote, vote_weight};
use crate::feature_table::{FeatureTable, Table};
use crate::ids::{ClassId, InstanceId};
use crate::rng::{Purpose, Stream};
use crate::search::Neighbours;
use crate::units::Temperature;

/// Queries of each kind in the gallery.
const OF_EACH_KIND: usize = 20;
/// Queries in the gallery if nothing votes, so that all are of one kind.
const OF_ALL_KINDS: usize = 3 * OF_EACH_KIND;

/// Prefixes of the images' CSS classes, for queries and for bank rows.
const QUERY: char = 'q';
const ROW: char = 'r';

/// Reason for showing a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::IntoStaticStr, VariantArray)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum ExampleKind {
    /// The right class won by the widest margin.
    Best,
    /// A wrong class won by the widest margin.
    Worst,
    /// Chosen at random.
    Typical,
}

impl ExampleKind {
    /// Returns the label on the page.
    fn caption(self) -> &'static str {
        match self {
            Self::Best => "surest right",
            Self::Worst => "surest wrong",
            Self::Typical => "at random",
        }
    }
}

/// Query of the gallery.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Example {
    /// Row in the queries' table.
    pub query: usize,
    /// Reason for showing the query.
    pub kind: ExampleKind,
    /// Class that won; `None` if nothing could vote or the query has no class.
    pub winner: Option<ClassId>,
    /// Fraction of the votes' weight for the query's own class.
    pub own_share: f64,
    /// Fraction of the votes' weight for the winner.
    pub winner_share: f64,
}

/// Chooses queries by the votes of their first `k` neighbours. The classes take turns: each appears before
/// any appears twice.
pub fn examples(
    bank: &dyn Table,
    queries: &FeatureTable,
    neighbours: &Neighbours,
    k: usize,
    temperature: Temperature,
) -> Vec<Example> {
    let voted = |query: usize| {
        let class = queries.labels[query]?;
        let voters = neighbours.of(query).take(k).filter_map(|(row, s)| Some((bank.label(row)?, s)));
        let winner = *vote(voters.clone(), temperature).first()?;
        let most = voters.clone().next()?.1;
        let weight = |s: f32| vote_weight(s, most, temperature);
        let sum = |of: Option<ClassId>| -> f64 {
            voters.clone().filter(|(class, _)| of.is_none_or(|of| of == *class)).map(|(_, s)| weight(s)).sum()
        };
        let total = sum(None).max(f64::MIN_POSITIVE);
        let (own_share, winner_share) = (sum(Some(class)) / total, sum(Some(winner)) / total);
        let kind = if winner == class { ExampleKind::Best } else { ExampleKind::Worst };
        Some((class, Example { query, kind, winner: Some(winner), own_share, winner_share }))
    };
    let mut all: Vec<(ClassId, Example)> = (0..queries.len()).filter_map(voted).collect();
    let key = |example: &Example| Stream::new(0, Purpose::Examples, example.query as u64, 0).bits();
    if all.is_empty() {
        let unvoted = |query| Example {
            query,
            kind: ExampleKind::Typical,
            winner: None,
            own_share: 0.0,
            winner_share: 0.0,
        };
        all.extend((0..queries.len()).map(|query| (ClassId(0), unvoted(query))));
        return in_turns(all.into_iter(), OF_ALL_KINDS, |a, b| key(a).cmp(&key(b)));
    }
    let nearest = |example: &Example| neighbours.of(example.query).next().map_or(0.0, |(_, s)| f64::from(s));
    // With equal margins, the query with the nearer neighbour is surer.
    let sureness = |example: &Example| {
        (example.winner_share - example.own_share.min(1.0 - example.winner_share), nearest(example))
    };
    let surest = |kind: ExampleKind| {
        let of_kind = all.iter().filter(|(_, example)| example.kind == kind).copied();
        in_turns(of_kind, OF_EACH_KIND, |a, b| {
            let ((a, a_nearest), (b, b_nearest)) = (sureness(a), sureness(b));
            b.total_cmp(&a).then(b_nearest.total_cmp(&a_nearest))
        })
    };
    let mut chosen = surest(ExampleKind::Best);
    chosen.extend(surest(ExampleKind::Worst));
    let rest = all.iter().filter(|(_, example)| !chosen.iter().any(|other| other.query == example.query));
    let typical = rest.map(|&(class, example)| (class, Example { kind: ExampleKind::Typical, ..example }));
    let typical = in_turns(typical, OF_EACH_KIND, |a, b| key(a).cmp(&key(b)));
    chosen.extend(typical);
    chosen
}

/// Takes the first `count` in turns: the first of each class, then the second of each, and so on.
fn in_turns(
    examples: impl Iterator<Item = (ClassId, Example)>,
    count: usize,
    order: impl Fn(&Example, &Example) -> std::cmp::Ordering,
) -> Vec<Example> {
    let mut classes = BTreeMap::<ClassId, Vec<Example>>::new();
    examples.for_each(|(class, example)| classes.entry(class).or_default().push(example));
    let mut turns = Vec::new();
    for examples in classes.values_mut() {
        examples.sort_by(|a, b| order(a, b).then(a.query.cmp(&b.query)));
        turns.extend(examples.iter().copied().enumerate());
    }
    turns.sort_by(|(turn, a), (other_turn, b)| {
        turn.cmp(other_turn).then_with(|| order(a, b)).then(a.query.cmp(&b.query))
    });
    turns.into_iter().map(|(_, example)| example).take(count).collect()
}

/// Renders queries with their nearest neighbours.
pub(super) fn section(input: &PageInput<'_>, images: &PageImages) -> Option<Section> {
    if input.examples.is_empty() {
        return None;
    }
    let mut html = String::from("<p class=\"legend\">");
    if input.report().has_scores() {
        html.push_str("<span class=\"right\">right class</span> <span class=\"wrong\">another class</span> ");
    }
    html.push_str("The most similar first, with their cosine.");
    let all = input.queries.len();
    if input.report().has_scores() {
        html.push_str(
            "</p>\n<div class=\"bar-head\"><div class=\"segments\" role=\"group\" \
             aria-label=\"Which queries\" id=\"kinds\">",
        );
        let kinds = ExampleKind::VARIANTS.iter().map(|kind| (kind.into(), kind.caption()));
        for (kind, name) in std::iter::once(("", "all")).chain(kinds) {
            let pressed = kind.is_empty();
            add!(
                html,
                "<button type=\"button\" data-kind=\"{kind}\" aria-pressed=\"{pressed}\">{name}</button>"
            );
        }
        add!(
            html,
            "</div><span><span id=\"shown\" role=\"status\"></span> of {} queries</span></div>\n",
            grouped(all as u64)
        );
    } else if input.examples.len() < all {
        add!(html, " {} of {} images, drawn at random.</p>\n", input.examples.len(), grouped(all as u64));
    } else {
        html.push_str("</p>\n");
    }
    html.push_str("<div class=\"gallery\">\n");
    for example in input.examples {
        article(&mut html, input, images, example);
    }
    add!(html, "</div>\n<style>\n{}</style>\n", images_css(images));
    html.push_str(
        "<p class=\"about\" id=\"none-shown\" hidden>No query of this class is among those shown.</p>\n",
    );
    Some(Section { id: "gallery", title: "Queries and neighbours", html })
}

/// Returns folder and file of an image, or its number.
fn file(images: &Thumbnails, id: InstanceId) -> String {
    // Several folders may have files of the same name.
    let short = |path: &str| {
        let folder = path.rsplit('/').take(2).collect::<Vec<_>>();
        folder.into_iter().rev().collect::<Vec<_>>().join("/")
    };
    images.path(id).map_or_else(|| format!("image {}", id.0), short)
}

/// Returns the class of an image, or its file if it has no class.
fn caption(input: &PageInput<'_>, images: &Thumbnails, label: Option<ClassId>, id: InstanceId) -> String {
    if label.is_some() { input.class_name(label).to_owned() } else { file(images, id) }
}

/// Returns the class of an image and its file; the class is omitted if the folder is named so.
fn caption_with_file(
    input: &PageInput<'_>,
    images: &Thumbnails,
    label: Option<ClassId>,
    id: InstanceId,
) -> String {
    let (class, file) = (input.class_name(label), file(images, id));
    let has_class = file.split_once('/').is_some_and(|(folder, _)| folder == class);
    if label.is_none() || has_class { file } else { format!("{class}, {file}") }
}

/// Names an image by its number and its file.
fn named(images: &Thumbnails, id: InstanceId) -> String {
    let path = images.path(id).map_or_else(String::new, |path| format!(" {path}"));
    escape(&format!("image {}{path}", id.0))
}

fn article(html: &mut String, input: &PageInput<'_>, images: &PageImages, example: &Example) {
    let (own, query) =
        (input.class_name(input.queries.labels[example.query]), input.queries.ids[example.query]);
    let winner = input.class_name(example.winner);
    let verdict = if example.winner.is_none() {
        String::new()
    } else if winner == own {
        format!("<span class=\"right\">voted right</span> with {} of the votes", percent(example.own_share))
    } else {
        format!(
            "voted <span class=\"wrong\">{}</span> with {} of the votes, its own class has {}",
            escape(winner),
            percent(example.winner_share),
            percent(example.own_share)
        )
    };
    add!(
        html,
        "<article data-class=\"{0}\" data-kind=\"{1}\">\n<figure class=\"query\" title=\"{3}\">{2}</figure>\n\
         <div class=\"found\">\n<p class=\"verdict\"><b>{4}</b> {5}<span>{verdict}</span></p>\n\
         <div class=\"neighbours\">\n",
        escape(own),
        <&str>::from(example.kind),
        image(&images.queries, QUERY, query, own),
        named(&images.queries, query),
        escape(&caption(input, &images.queries, input.queries.labels[example.query], query)),
        example.winner.map_or_else(String::new, |_| {
            format!("<span class=\"tag\">{}</span> ", example.kind.caption())
        }),
    );
    for (neighbour, similarity) in input.neighbours.of(example.query).take(input.shown) {
        let (label, id) = (input.bank.label(neighbour), input.bank.id(neighbour));
        let class = input.class_name(label);
        let verdict = match example.winner {
            None => "unscored",
            Some(_) if class == own => "right",
            Some(_) => "wrong",
        };
        // Without compared classes, the file shows which image was found.
        let caption = if example.winner.is_none() { caption_with_file } else { caption };
        add!(
            html,
            "<figure class=\"{verdict}\" title=\"{0}, {3}, cosine {similarity:.3}\">{1}<figcaption>{2} \
             <span>{similarity:.2}</span></figcaption></figure>\n",
            escape(class),
            image(&images.bank, ROW, id, class),
            breakable(&caption(input, &images.bank, label, id)),
            named(&images.bank, id)
        );
    }
    html.push_str("</div>\n</div>\n</article>\n");
}

fn image(images: &Thumbnails, prefix: char, id: InstanceId, class: &str) -> String {
    if images.get(id).is_none() {
        return format!("<span class=\"missing\">{id}</span>");
    }
    let class = escape(class);
    format!("<span class=\"thumb {prefix}{id}\" role=\"img\" aria-label=\"instance {id}, {class}\"></span>")
}

/// Renders the style sheet with the gallery's images: each image is in the page once.
fn images_css(images: &PageImages) -> String {
    let mut css = String::new();
    for (prefix, thumbnails) in [(QUERY, &images.queries), (ROW, &images.bank)] {
        for (id, jpeg) in thumbnails.by_id() {
            let jpeg = STANDARD.encode(jpeg);
            add!(css, ".{prefix}{id}{{background-image:url(data:image/jpeg;base64,{jpeg})}}\n");
        }
    }
    css
}
