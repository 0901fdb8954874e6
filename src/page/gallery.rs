//! Queries with their nearest neighbours.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::text::{add, breakable, escape, grouped, percent};
use super::{PageImages, PageInput, SHOWN_NEIGHBOURS, Section};
use crate::eval::Thumbnails;
use crate::ids::{ClassId, InstanceId};
use crate::page::{Example, ExampleKind};

const KINDS: [(&str, &str); 4] =
    [("", "all"), ("best", "surest right"), ("worst", "surest wrong"), ("typical", "at random")];

/// What the class of an image in the style sheet begins with, by its split.
const QUERY: char = 'q';
const ROW: char = 'r';

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
        html.push_str("</p>\n<div class=\"bar-head\"><div class=\"segments\" role=\"group\" aria-label=\"Which queries\" id=\"kinds\">");
        for (kind, name) in KINDS {
            let pressed = kind.is_empty();
            add!(
                html,
                "<button type=\"button\" data-kind=\"{kind}\" aria-pressed=\"{pressed}\">{name}</button>"
            );
        }
        add!(
            html,
            "</div><span id=\"shown\" role=\"status\"></span><span>of {} queries</span></div>\n",
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

/// The class of an image, or where it has none its folder and file, or its number.
fn caption(input: &PageInput<'_>, images: &Thumbnails, label: Option<ClassId>, id: InstanceId) -> String {
    // Several folders may have files of one name.
    let short = |path: &str| {
        let folder = path.rsplit('/').take(2).collect::<Vec<_>>();
        folder.into_iter().rev().collect::<Vec<_>>().join("/")
    };
    match label {
        Some(_) => input.class_name(label).to_owned(),
        None => images.path(id).map_or_else(|| format!("image {}", id.0), short),
    }
}

/// An image by its number and its file.
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
    let kind = match example.kind {
        ExampleKind::Best => "surest right",
        ExampleKind::Worst => "surest wrong",
        ExampleKind::Typical => "at random",
    };
    add!(
        html,
        "<article data-class=\"{0}\" data-kind=\"{1}\">\n<figure class=\"query\" title=\"{3}\">{2}</figure>\n\
         <div class=\"found\">\n<p class=\"verdict\"><b>{4}</b> {5}<span>{verdict}</span></p>\n<div class=\"neighbours\">\n",
        escape(own),
        example.kind.name(),
        image(&images.queries, QUERY, query, own),
        named(&images.queries, query),
        escape(&caption(input, &images.queries, input.queries.labels[example.query], query)),
        if example.winner.is_some() { format!("<span class=\"tag\">{kind}</span> ") } else { String::new() },
    );
    for (neighbour, similarity) in input.neighbours.of(example.query).take(SHOWN_NEIGHBOURS) {
        let (label, id) = (input.bank.labels()[neighbour], input.bank.ids()[neighbour]);
        let class = input.class_name(label);
        let verdict = match example.winner {
            None => "unscored",
            Some(_) if class == own => "right",
            Some(_) => "wrong",
        };
        add!(
            html,
            "<figure class=\"{verdict}\" title=\"{0}, {3}, cosine {similarity:.3}\">{1}<figcaption>{2} <span>{similarity:.2}</span></figcaption></figure>\n",
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

/// The style sheet of the gallery's images: each is in the page once, however many queries it is a neighbour of.
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
