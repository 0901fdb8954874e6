//! `knn`: scores features by nearest neighbours and publishes report, page and neighbours.

#[cfg(feature = "torch")]
pub(super) mod of_run;
pub(super) mod pair;

use std::collections::HashSet;

use rayon::ThreadPool;

use self::pair::KnnPair;
pub(super) use self::pair::are_one_file;
use super::CommandError;
use super::reports::{self, OfRun};
use crate::dataset::{Manifest, read_duplicates};
use crate::eval::{
    Duplicates, EvalError, KnnOptions, KnnReport, KnnReports, Thumbnails, default_k,
    evaluate_with_neighbours, is_remark, sprite, write_neighbours,
};
use crate::feature_table::{ColumnNames, RowNames, Table, TableMeta};
use crate::ids::InstanceId;
use crate::image::encode_jpeg;
use crate::page::{PageImages, PageInput, SHOWN_NEIGHBOURS, examples, history, map, page};
use crate::progress::Progress;
use crate::search::Neighbours;
use crate::storage::{Location, PublishMode};
use crate::units::Temperature;

/// Minimum number of neighbours that the page shows for each query.
const LEAST_SHOWN: usize = 10;
/// Default number of points on the page's map.
pub const DEFAULT_MAP_POINTS: usize = 2000;
/// JPEG quality of the map's images.
const SPRITE_QUALITY: u8 = 78;

/// Options and outputs of an evaluation.
#[derive(Clone, Debug)]
pub struct KnnJob {
    /// Numbers of voting neighbours; the largest is the headline. Empty for the default of [`default_k`].
    pub k: Vec<usize>,
    /// Temperatures of the weights; the first is the headline.
    pub temperature: Vec<Temperature>,
    /// Whether to exclude a query's own row.
    pub leave_one_out: bool,
    /// Whether to exclude near-duplicates of a query that ingest found; requires a dataset.
    pub exclude_duplicates: bool,
    /// File of the report (`.json`), with a page (`.html`) beside it. By default tables get no files, and a
    /// run's report goes to its `eval/`.
    pub output: Option<Location>,
    /// Parquet file for the neighbours of the first feature.
    pub neighbours: Option<Location>,
    /// Number of points on the page's map; 0 for no map.
    pub map_points: usize,
    /// Search threads; 0 for one per core.
    pub threads: usize,
}

impl Default for KnnJob {
    fn default() -> Self {
        Self {
            k: Vec::new(),
            temperature: KnnOptions::default().temperature,
            leave_one_out: false,
            exclude_duplicates: false,
            output: None,
            neighbours: None,
            map_points: DEFAULT_MAP_POINTS,
            threads: 0,
        }
    }
}

/// Feature tables to evaluate.
#[derive(Clone, Debug)]
pub struct KnnTables {
    /// Bank (a table, a checkpoint or a run) and table of queries for each feature.
    pub pairs: Vec<(Location, Location)>,
    /// Column names in tables of other programs, for the bank and for the queries.
    pub columns: [ColumnNames; 2],
    /// Whether to normalise the vectors of such tables; otherwise other lengths are an error.
    pub normalize: bool,
    /// Dataset with the page's images and the duplicates.
    pub dataset: Option<Location>,
}

/// Processes that search: one, or several together.
pub trait Searchers {
    /// Returns whether this process gets the results.
    fn is_first(&self) -> bool;

    /// Ends the common work; rank 0 does the rest alone.
    fn leave(&self);

    /// Scores a feature.
    ///
    /// # Errors
    /// As [`evaluate`](crate::eval::evaluate), or if another process fails.
    fn evaluate(
        &self,
        pair: &KnnPair,
        options: &KnnOptions,
        pool: &ThreadPool,
    ) -> Result<(KnnReport, Neighbours), EvalError>;
}

/// Single process.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Searchers for Alone {
    fn is_first(&self) -> bool {
        true
    }

    fn leave(&self) {}

    fn evaluate(
        &self,
        pair: &KnnPair,
        options: &KnnOptions,
        pool: &ThreadPool,
    ) -> Result<(KnnReport, Neighbours), EvalError> {
        pool.install(|| evaluate_with_neighbours(&*pair.bank, &pair.queries, options))
    }
}

#[cfg(feature = "torch")]
impl Searchers for crate::distributed::ProcessGroup {
    fn is_first(&self) -> bool {
        Self::is_first(self)
    }

    fn leave(&self) {
        Self::leave(self);
    }

    fn evaluate(
        &self,
        pair: &KnnPair,
        options: &KnnOptions,
        pool: &ThreadPool,
    ) -> Result<(KnnReport, Neighbours), EvalError> {
        if self.world() == 1 {
            return Alone.evaluate(pair, options, pool);
        }
        let KnnPair { bank, queries, .. } = pair;
        self.agree("the bank", &format!("{:?}, {} rows", bank.meta(), bank.rows()))?;
        self.agree("the queries' number", &queries.len().to_string())?;
        let own = crate::eval::share(bank.rows(), self);
        crate::eval::evaluate_over(self, &**bank, (own, None), queries, options, Some(pool))
    }
}

/// Scores the features of tables. Rank 0 returns the reports.
///
/// # Errors
/// If tables cannot be read or do not belong together, `k` is too large, or the store fails.
pub fn knn(
    tables: &KnnTables,
    job: &KnnJob,
    searchers: &dyn Searchers,
    progress: &dyn Progress,
) -> Result<Option<KnnReports>, CommandError> {
    for (output, option) in [(&job.neighbours, "--neighbours"), (&job.output, "--output")] {
        let is_read = |table: &&Location| output.as_ref().is_some_and(|output| are_one_file(output, table));
        if let Some(table) = tables.pairs.iter().flat_map(|(bank, queries)| [bank, queries]).find(is_read) {
            return Err(CommandError::Usage(format!(
                "{option} {table}: that is a table to read; name another file"
            )));
        }
    }
    let pair = |(bank, queries): &(Location, Location)| {
        KnnPair::open((bank, queries), &tables.columns, tables.normalize, progress)
    };
    let pairs = tables.pairs.iter().map(pair).collect::<Result<Vec<_>, CommandError>>()?;
    let place = |output| Place {
        output,
        run: None,
        of: OfRun::default(),
        dataset_digest: None,
        mode: PublishMode::Overwrite,
    };
    let place = job.output.clone().map(place);
    evaluate(&pairs, job, tables.dataset.as_ref(), place.as_ref(), searchers, progress)
}

/// File of the report, and its further contents.
struct Place {
    output: Location,
    /// Run whose scores the page compares, and the folder in its `eval/` for a dataset that the run was not trained on.
    run: Option<(Location, Option<String>)>,
    of: OfRun,
    /// Digest of the dataset that a run is evaluated on; its tables may have the digest from before a split was added.
    dataset_digest: Option<String>,
    mode: PublishMode,
}

/// Votes with each feature and publishes the requested outputs. Rank 0 returns the reports.
fn evaluate(
    pairs: &[KnnPair],
    job: &KnnJob,
    dataset: Option<&Location>,
    place: Option<&Place>,
    searchers: &dyn Searchers,
    progress: &dyn Progress,
) -> Result<Option<KnnReports>, CommandError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(job.threads).build()?;
    let duplicates = match dataset.filter(|_| job.exclude_duplicates) {
        Some(dataset) => {
            let manifest = Manifest::read(dataset)?;
            for pair in pairs {
                check_dataset(
                    dataset,
                    &manifest,
                    &[("bank", pair.bank.meta()), ("queries", &pair.queries.meta)],
                )?;
            }
            Some(read_duplicates(dataset)?)
        }
        None => None,
    };
    let dataset_digest = place.and_then(|place| place.dataset_digest.as_ref());
    let mut evaluated = Vec::new();
    for pair in pairs {
        if let Some(why) = pair.unrelated.as_ref().filter(|_| job.leave_one_out) {
            let reason = format!(
                "--leave-one-out compares ids, but {why}: give --id-column, or tables with ids of one kind"
            );
            return Err(CommandError::Usage(reason));
        }
        let splits = (&pair.queries.meta.split, &pair.bank.meta().split);
        let exclude = duplicates.as_ref().map(|rows| Duplicates::between(rows, splits.0, splits.1));
        let options = KnnOptions {
            k: if job.k.is_empty() {
                vec![default_k(pair.bank.rows().saturating_sub(usize::from(job.leave_one_out)))]
            } else {
                job.k.clone()
            },
            temperature: job.temperature.clone(),
            leave_one_out: job.leave_one_out,
            exclude,
            label_sets: pair.label_sets.clone(),
            shown: if place.is_some() { LEAST_SHOWN } else { 0 },
        };
        let (mut report, neighbours) = searchers.evaluate(pair, &options, &pool)?;
        if let Some(digest) = dataset_digest {
            report.dataset_digest.clone_from(digest);
        }
        evaluated.push((report, neighbours));
    }
    searchers.leave();
    if !searchers.is_first() {
        return Ok(None);
    }
    // Verify before anything is printed or published.
    pairs.iter().try_for_each(|pair| pair.bank.verify())?;
    let mut evaluated = evaluated.into_iter();
    let Some(((first, neighbours), pair)) = evaluated.next().zip(pairs.first()) else {
        let reason = "no feature to evaluate: give --bank and --queries, or --run";
        return Err(CommandError::Usage(reason.into()));
    };
    let reports = KnnReports { first, other_features: evaluated.map(|(report, _)| report).collect() };
    // Notes about the rows are the same for each feature.
    let mut notes: Vec<&String> = Vec::new();
    for note in reports.all().flat_map(|report| &report.notes) {
        if !notes.contains(&note) {
            if is_remark(note) {
                tracing::info!("{note}")
            } else {
                tracing::warn!("{note}")
            }
            notes.push(note);
        }
    }
    if let Some(location) = &job.neighbours {
        // The page shows more neighbours than vote.
        let voters = (reports.first.k < neighbours.k).then(|| first_of_each(&neighbours, reports.first.k));
        let voters = voters.as_ref().unwrap_or(&neighbours);
        write_neighbours(location, &*pair.bank, &pair.queries, voters, &pair.row_names)?;
    }
    if let Some(place) = place {
        let shown = examples(&*pair.bank, &pair.queries, &neighbours, reports.first.k, job.temperature[0]);
        let name = place.of.dataset.as_deref().or_else(|| dataset.map(Location::file_name));
        let of_name = name.unwrap_or_default();
        let history =
            place.run.as_ref().map(|(run, on)| history(run, &reports.first, of_name, on.as_deref()));
        let history = history.transpose()?.unwrap_or_default();
        let map =
            (job.map_points > 0).then(|| pool.install(|| map(&pair.queries, job.map_points))).transpose()?;
        let input = PageInput {
            reports: &reports,
            bank: &*pair.bank,
            queries: &pair.queries,
            neighbours: &neighbours,
            shown: SHOWN_NEIGHBOURS,
            dataset: name,
            examples: &shown,
            history: &history,
            map: map.as_ref(),
        };
        publish(dataset, place, &input, &pair.row_names, progress)?;
    }
    Ok(Some(reports))
}

/// Returns the first `k` neighbours of each query.
fn first_of_each(neighbours: &Neighbours, k: usize) -> Neighbours {
    let found = neighbours.found.chunks(neighbours.k).flat_map(|of| &of[..k]).copied().collect();
    Neighbours { k, found }
}

/// Returns the page of a report, in the same folder.
fn page_beside(report: &Location) -> Option<Location> {
    report.with_file_name(&format!("{}.html", report.file_name().trim_end_matches(".json")))
}

/// Publishes the page, then the report beside it.
fn publish(
    dataset: Option<&Location>,
    place: &Place,
    input: &PageInput<'_>,
    row_names: &[RowNames; 2],
    progress: &dyn Progress,
) -> Result<(), CommandError> {
    let Place { output, of, mode, .. } = place;
    let images = match dataset {
        Some(dataset) => images(dataset, input)?,
        None => names_alone(input, row_names),
    };
    let html = page_beside(output)
        .ok_or_else(|| CommandError::Usage(format!("--output {output}: expected the name of a file")))?;
    html.publish(page(input, &images)?, PublishMode::Overwrite)?;
    reports::publish(output, input.reports, of, *mode)?;
    progress.note(&format!("report {output}, page {html}"));
    Ok(())
}

/// Checks that tables, given with their names in errors, belong to splits of this dataset.
pub(super) fn check_dataset(
    dataset: &Location,
    manifest: &Manifest,
    tables: &[(&str, &TableMeta)],
) -> Result<(), CommandError> {
    let dataset_digest = manifest.dataset_digest.to_string();
    for (table, meta) in tables {
        let split = manifest.splits.get(&meta.split);
        if !split.is_some_and(|split| meta.is_of(&split.digest.to_string(), &dataset_digest)) {
            let (split, of) = (&meta.split, &meta.dataset_digest);
            let reason = if split.is_empty() {
                format!(
                    "the {table} names no split, as tables of other programs do: leave out --dataset {dataset}"
                )
            } else {
                format!(
                    "the {table} is of split `{split}` of the dataset {of:.12}…, and --dataset {dataset} \
                     ({dataset_digest:.12}…) has another one or none of that name: give the dataset that was \
                     embedded"
                )
            };
            return Err(CommandError::Data(reason));
        }
    }
    Ok(())
}

/// Returns the row names of other programs' tables, as replacements for images.
fn names_alone(input: &PageInput<'_>, [bank, queries]: &[RowNames; 2]) -> PageImages {
    let named = |names: &RowNames, table: &dyn Table, shown: Vec<InstanceId>| {
        let shown: HashSet<InstanceId> = shown.into_iter().collect();
        let rows = table.ids().enumerate().filter(|(_, id)| shown.contains(id));
        Thumbnails::named(rows.filter_map(|(row, id)| Some((id, names.name(row)?))))
    };
    PageImages {
        queries: named(queries, input.queries, input.shown_queries()),
        bank: named(bank, input.bank, input.shown_neighbours()),
        sprite: None,
    }
}

fn images(dataset: &Location, input: &PageInput<'_>) -> Result<PageImages, CommandError> {
    let manifest = Manifest::read(dataset)?;
    check_dataset(dataset, &manifest, &[("bank", input.bank.meta()), ("queries", &input.queries.meta)])?;
    let split = &input.queries.meta.split;
    let mapped = input.mapped();
    // In an object store each point would cost a row group, so only local datasets give images for the map.
    let sprite = if mapped.is_empty() || dataset.local_path().is_none() {
        None
    } else {
        Some(encode_jpeg(&sprite(dataset, &manifest, split, &mapped)?, SPRITE_QUALITY)?)
    };
    Ok(PageImages {
        queries: Thumbnails::load(dataset, &manifest, split, input.shown_queries())?,
        bank: Thumbnails::load(dataset, &manifest, &input.bank.meta().split, input.shown_neighbours())?,
        sprite,
    })
}
