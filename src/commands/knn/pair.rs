//! Bank and queries of a feature, with a common numbering of classes and ids.
//!
//! Tables of other programs may have names instead of numbers for classes and rows. The bank is unchanged; labels and
//! ids of the queries are mapped to the bank's. The interpretation of a table is reported before the search.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::commands::CommandError;
use crate::eval::{EvalError, LabelSets, check_whole, open_bank};
use crate::feature_table::{ColumnNames, FeatureTable, Foreign, ForeignLabels, RowNames, Table};
use crate::ids::{ClassId, InstanceId};
use crate::progress::Progress;
use crate::storage::Location;

/// Number of classes that an error names.
const SHOWN_CLASSES: usize = 3;

/// Voting rows and queries of one feature.
#[derive(Debug)]
pub struct KnnPair {
    /// Voting rows.
    pub bank: Box<dyn Table>,
    /// Query vectors, with labels and ids of the bank's numbering.
    pub queries: FeatureTable,
    /// Names of the rows of bank and queries.
    pub row_names: [RowNames; 2],
    /// Labels, if images may have several.
    pub label_sets: Option<Arc<LabelSets>>,
    /// Reason why ids of bank and queries cannot be compared; `None` if they can.
    pub unrelated: Option<String>,
}

impl KnnPair {
    /// Creates a pair of two tables of this program.
    pub fn new(bank: Box<dyn Table>, queries: FeatureTable) -> Self {
        Self { bank, queries, row_names: Default::default(), label_sets: None, unrelated: None }
    }

    /// Opens a bank and reads queries. `columns` are the column names of each in tables of other programs;
    /// `normalize` brings the vectors of such tables to unit length.
    ///
    /// # Errors
    /// If a table cannot be read or has no rows, its vectors do not have unit length, or the tables do not
    /// belong together.
    pub fn open(
        (bank_at, queries_at): (&Location, &Location),
        columns: &[ColumnNames; 2],
        normalize: bool,
        progress: &dyn Progress,
    ) -> Result<Self, CommandError> {
        let (bank, of_bank) = open_bank(bank_at, &columns[0])?;
        check_whole(queries_at)?;
        let (queries, of_queries) = FeatureTable::read_foreign(queries_at, Some(&columns[1]))?;
        let foreign = || [&of_bank, &of_queries].into_iter().flatten();
        for Foreign { table, about, not_unit, .. } in foreign() {
            let normalized = if normalize && not_unit.is_some() { ", normalized" } else { "" };
            progress.note(&format!("{table}: {about}{normalized}"));
        }
        for Foreign { table, zero, not_unit, .. } in foreign() {
            let wrong =
                |row: usize, reason: &str| Err(CommandError::Data(format!("{table} row {row}: {reason}")));
            if let Some(row) = zero.filter(|_| normalize) {
                let reason =
                    "every number of the vector is 0 in 32 bits, so it has no cosine: leave the row out";
                return wrong(row, reason);
            }
            if let Some((row, length)) = not_unit.filter(|_| !normalize) {
                let reason = format!(
                    "the vector has length {length:.4}, not 1: give --normalize to compare vectors by their \
                     cosine; inner products and distances of other vectors are not compared"
                );
                return wrong(row, &reason);
            }
        }
        let mut pair = Self::new(bank, queries);
        let sides = [of_bank.as_ref(), of_queries.as_ref()];
        if let Some(note) = pair.match_labels(sides, [bank_at, queries_at])? {
            progress.note(&note);
        }
        if let Some(reason) = pair.bank.meta().conflict(&pair.queries.meta) {
            let tables = format!("--bank {bank_at} and --queries {queries_at}");
            return Err(EvalError::Mismatch { tables, reason }.into());
        }
        pair.match_ids(sides, are_one_file(bank_at, queries_at));
        Ok(pair)
    }

    /// Maps the labels of the queries to the bank's numbers: by name if a table of another program has names,
    /// else by number. Returns a note for the user.
    fn match_labels(
        &mut self,
        sides: [Option<&Foreign>; 2],
        names: [&Location; 2],
    ) -> Result<Option<String>, CommandError> {
        let bank_meta = self.bank.meta().clone();
        let metas = [&bank_meta, &self.queries.meta];
        let kinds = sides.map(|side| side.and_then(|side| side.labels.are_names()));
        if let [Some(bank), Some(queries)] = kinds
            && bank != queries
        {
            let [bank, queries] = [0, 1].map(|side| {
                let what = if kinds[side] == Some(true) { "names" } else { "numbers" };
                format!("{} has class {what} such as {}", names[side], some(&metas[side].classes))
            });
            let hint = "give labels of one kind, or another --label-column";
            return Err(CommandError::Data(format!("{bank}, {queries}: {hint}")));
        }
        let has_sets = |side: Option<&Foreign>| {
            side.is_some_and(|side| matches!(side.labels, ForeignLabels::Sets { .. }))
        };
        let by_name = kinds.contains(&Some(true));
        // Number in the bank of each class name.
        let number: HashMap<&str, u32> = bank_meta.classes.iter().map(String::as_str).zip(0..).collect();
        if by_name && number.len() < bank_meta.classes.len() {
            let reason = "has two classes of one name, so labels cannot be matched by their names";
            return Err(CommandError::Data(format!("the bank {} {reason}", names[0])));
        }
        let unknown = |name: &str| {
            CommandError::Data(format!(
                "the queries {} have the class `{name}`, which the bank {} lacks: it has {}, the queries have {}",
                names[1],
                names[0],
                some(&bank_meta.classes),
                some(&metas[1].classes)
            ))
        };
        let in_bank = |class: u32| match metas[1].classes.get(class as usize).filter(|_| by_name) {
            Some(name) => number.get(name.as_str()).copied().ok_or_else(|| unknown(name)),
            None => Ok(class),
        };
        let has_labels = [
            self.bank.has_labels() || has_sets(sides[0]),
            self.queries.labels.iter().any(Option::is_some) || has_sets(sides[1]),
        ];
        if has_labels != [true; 2] {
            // Nothing is scored, so nothing has to match.
            if sides.iter().any(Option::is_some) && !bank_meta.classes.is_empty() {
                self.queries.meta.classes = bank_meta.classes;
                self.queries.labels.fill(None);
            }
            return Ok(None);
        }
        if !by_name {
            // Classes of this program's table are 0 to their number; other tables have arbitrary numbers.
            let numbered: [&dyn Table; 2] = [&*self.bank, &self.queries];
            let count = [0, 1].map(|side| sides[side].is_none().then_some(metas[side].classes.len()));
            for (side, count) in [(0, count[1]), (1, count[0])] {
                let beyond = |label: Option<ClassId>| {
                    count.is_some_and(|count| count > 0 && label.is_some_and(|class| class.index() >= count))
                };
                if let (Some(row), Some(count)) = (numbered[side].labels().position(beyond), count) {
                    let class = numbered[side].label(row).map_or(0, |class| class.0);
                    return Err(CommandError::Data(format!(
                        "{} row {row}: class {class}, but {} has the {count} classes 0 to {}: are they \
                         counted from 1, or of other data? give class names by another --label-column",
                        names[side],
                        names[1 - side],
                        count - 1
                    )));
                }
            }
        }
        let mut note = None;
        if sides.into_iter().any(has_sets) {
            let of_table = |table: &dyn Table| -> Vec<Vec<u32>> {
                table.labels().map(|label| label.iter().map(|class| u32::from(class.0)).collect()).collect()
            };
            let rows = |side: Option<&Foreign>, table: &dyn Table| match side.map(|side| &side.labels) {
                Some(ForeignLabels::Sets { rows, .. }) => rows.clone(),
                _ => of_table(table),
            };
            let mut sets =
                LabelSets { bank: rows(sides[0], &*self.bank), queries: rows(sides[1], &self.queries) };
            // A label that the bank lacks is shared by no row; its number follows the bank's.
            let shared: HashSet<u32> = sets.bank.iter().flatten().copied().collect();
            let (mut found, mut missing) = (BTreeSet::new(), BTreeSet::new());
            for labels in &mut sets.queries {
                for label in labels.iter_mut() {
                    let (own, name) = (*label, metas[1].classes.get(*label as usize).filter(|_| by_name));
                    if let Some(name) = name {
                        *label = number.get(name.as_str()).copied().unwrap_or(number.len() as u32 + own);
                    }
                    let of = if shared.contains(label) { &mut found } else { &mut missing };
                    of.insert(own);
                }
                labels.sort_unstable();
            }
            let name = |own: u32| match metas[1].classes.get(own as usize).filter(|_| by_name) {
                Some(name) => name.clone(),
                None => own.to_string(),
            };
            let missing: Vec<String> = missing.into_iter().map(name).collect();
            if let Some(first) = missing.first().filter(|_| found.is_empty()) {
                return Err(unknown(first));
            }
            note = (!missing.is_empty()).then(|| {
                let (all, few) = (found.len() + missing.len(), some(&missing));
                format!("{}: no row of the bank has {} of its {all} labels: {few}", names[1], missing.len())
            });
            self.label_sets = Some(Arc::new(sets));
            self.queries.labels.fill(None);
        } else if by_name {
            let label = |label: &Option<ClassId>| {
                label.map(|class| Ok::<_, CommandError>(ClassId(in_bank(class.0.into())? as u16))).transpose()
            };
            self.queries.labels = self.queries.labels.iter().map(label).collect::<Result<_, _>>()?;
        } else {
            return Ok(None);
        }
        self.queries.meta.classes = bank_meta.classes;
        Ok(note)
    }

    /// Maps text ids to numbers: equal texts get equal ids. Ids that cannot be compared get distinct ones.
    fn match_ids(&mut self, sides: [Option<&Foreign>; 2], are_one_file: bool) {
        let [bank, queries] = sides.map(|side| side.map_or(RowNames::Ids, |side| side.rows.clone()));
        let own: HashMap<&str, InstanceId> = match (&bank, &queries) {
            (RowNames::Ids, RowNames::Ids) => return,
            (RowNames::Unnamed, RowNames::Unnamed) if are_one_file => return,
            (RowNames::Texts(texts), RowNames::Texts(_)) => {
                texts.iter().map(String::as_str).zip(self.bank.ids()).collect()
            }
            _ => {
                let what = |names: &RowNames| match names {
                    RowNames::Unnamed => "no ids",
                    RowNames::Texts(_) => "ids that are text",
                    RowNames::Ids | RowNames::Numbers(_) => "ids that are numbers",
                };
                self.unrelated =
                    Some(format!("the bank has {}, the queries have {}", what(&bank), what(&queries)));
                HashMap::new()
            }
        };
        let taken: HashSet<InstanceId> = self.bank.ids().collect();
        let mut free = (0..=u32::MAX).map(InstanceId).filter(|id| !taken.contains(id));
        let texts: &[String] = if let RowNames::Texts(texts) = &queries { texts } else { &[] };
        let before = self.queries.ids.clone();
        for (row, id) in self.queries.ids.iter_mut().enumerate() {
            let known = texts.get(row).and_then(|text| own.get(text.as_str())).copied();
            *id = known.or_else(|| free.next()).expect("two tables in memory have less than 2^32 rows");
        }
        let queries = if let RowNames::Texts(_) = queries { queries } else { RowNames::Numbers(before) };
        self.row_names = [bank, queries];
    }
}

/// Returns whether two locations are the same file, even by another spelling or through links.
pub(in crate::commands) fn are_one_file(a: &Location, b: &Location) -> bool {
    let [real_a, real_b] = [a, b].map(|place| place.local_path().and_then(|path| path.canonicalize().ok()));
    real_a.zip(real_b).map_or_else(|| a.to_string() == b.to_string(), |(a, b)| a == b)
}

/// Lists some classes, and the number of the others.
fn some(classes: &[String]) -> String {
    let shown: Vec<_> = classes.iter().take(SHOWN_CLASSES).map(|class| format!("`{class}`")).collect();
    let more = classes.len().saturating_sub(shown.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, FixedSizeListArray, Float32Array, Int64Array, Int64Builder, ListBuilder, RecordBatch,
        StringArray, StringBuilder,
    };
    use arrow::datatypes::{DataType, Field};
    use std::sync::Mutex;
    use tempfile::TempDir;

    use super::*;
    use crate::eval::{KnnOptions, KnnReport, evaluate};
    use crate::failure::Failure;
    use crate::progress::Quiet;
    use crate::storage::PublishMode;

    /// Returns vectors in a plane, at these angles in degrees.
    fn vectors(angles: &[f32], length: f32) -> ArrayRef {
        let of = |angle: &f32| [length * angle.to_radians().cos(), length * angle.to_radians().sin()];
        let values = Float32Array::from_iter_values(angles.iter().flat_map(of));
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        Arc::new(FixedSizeListArray::new(item, 2, Arc::new(values), None))
    }

    fn text(values: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from_iter(
            values.iter().map(|value| Some(*value).filter(|value| *value != "-")),
        ))
    }

    fn numbers(values: &[i64]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    fn sets(values: &[&str]) -> ArrayRef {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for labels in values {
            lists.append_value(labels.split_whitespace().map(Some));
        }
        Arc::new(lists.finish())
    }

    /// Notes about tables.
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Notes {
        fn said(&self) -> String {
            self.0.lock().expect("no panic").join("\n")
        }
    }

    impl Progress for Notes {
        fn note(&self, line: &str) {
            self.0.lock().expect("no panic").push(line.to_owned());
        }
    }

    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder"))
        }

        /// Writes a table of unit vectors at these angles, with labels.
        fn table(&self, name: &str, angles: &[f32], labels: (&str, ArrayRef)) -> Location {
            self.write(name, &[("vec", vectors(angles, 1.0)), labels])
        }

        fn write(&self, name: &str, columns: &[(&str, ArrayRef)]) -> Location {
            let batch = RecordBatch::try_from_iter(columns.iter().cloned()).expect("a batch");
            let writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None);
            let mut writer = writer.expect("a writer");
            writer.write(&batch).expect("written");
            let location = Location::from_path(&self.0.path().join(name)).expect("a location");
            location.publish(writer.into_inner().expect("bytes"), PublishMode::Overwrite).expect("published");
            location
        }
    }

    fn open(bank: &Location, queries: &Location, normalize: bool) -> Result<KnnPair, CommandError> {
        KnnPair::open((bank, queries), &Default::default(), normalize, &Quiet)
    }

    fn refused(bank: &Location, queries: &Location) -> String {
        let error = open(bank, queries, false).expect_err("refused");
        assert_eq!(error.failure(), Failure::Data);
        error.to_string()
    }

    fn report(pair: &KnnPair, k: usize, leave_one_out: bool) -> KnnReport {
        let label_sets = pair.label_sets.clone();
        let options = KnnOptions { k: vec![k], leave_one_out, label_sets, ..KnnOptions::default() };
        evaluate(&*pair.bank, &pair.queries, &options).expect("scored")
    }

    /// Returns whether the report has a note with these words.
    fn says(pair: &KnnPair, words: &str) -> bool {
        report(pair, 1, false).notes.iter().any(|note| note.contains(words))
    }

    #[test]
    fn classes_of_both_tables_are_matched_by_their_names() {
        let files = Files::new();
        let bank = files.table("bank.parquet", &[0.0, 60.0, 120.0], ("class", text(&["dog", "cat", "ant"])));
        // Sorted by these names alone, ant would be 0 and dog 1, as cat is only in the bank.
        let queries = ("class", text(&["dog", "ant", "-"]));
        let queries = files.table("queries.parquet", &[1.0, 121.0, 61.0], queries);
        let pair = open(&bank, &queries, false).expect("opened");
        assert_eq!(pair.queries.labels, [Some(ClassId(2)), Some(ClassId(0)), None]);
        let report = report(&pair, 1, false);
        assert_eq!((report.top1, report.queries, report.classes), (1.0, 2, 3));
        assert_eq!(report.per_class[2].class, "dog");
        let other = files.table("other.parquet", &[1.0], ("class", text(&["n02084071"])));
        let error = refused(&bank, &other);
        for part in ["the class `n02084071`", "`ant`, `cat`, `dog`", "bank.parquet", "other.parquet"] {
            assert!(error.contains(part), "{error}");
        }
        let error = refused(&bank, &files.table("numbers.parquet", &[1.0], ("class", numbers(&[2]))));
        assert!(
            error.contains("class names such as `ant`") && error.contains("class numbers such as"),
            "{error}"
        );
    }

    #[test]
    fn a_vector_of_zeros_has_no_cosine_and_a_name_of_two_columns_or_classes_decides_nothing() {
        let files = Files::new();
        let good = files.write("good.parquet", &[("vec", vectors(&[0.0, 90.0], 2.0))]);
        let zeros = files.write("zeros.parquet", &[("vec", vectors(&[0.0, 90.0], 0.0))]);
        assert!(open(&good, &good, true).is_ok());
        let error = open(&good, &zeros, true).expect_err("refused").to_string();
        assert!(error.contains("zeros.parquet row 0") && error.contains("no cosine"), "{error}");

        let own = Location::from_path(&files.0.path().join("own.arrow")).expect("a location");
        let mut table = crate::eval::tests::table(1, 2, 2, 2);
        table.meta.classes = vec!["cat".into(), "cat".into()];
        table.write(&own).expect("written");
        let error = refused(&own, &files.table("named.parquet", &[0.0], ("class", text(&["cat"]))));
        assert!(error.contains("two classes of one name"), "{error}");
    }

    /// A table of this program has both numbers and names.
    #[test]
    fn a_table_of_this_program_fits_names_and_numbers() {
        let files = Files::new();
        let own = Location::from_path(&files.0.path().join("own.arrow")).expect("a location");
        let mut table = crate::eval::tests::table(1, 4, 2, 2);
        table.meta.classes = vec!["cat".into(), "dog".into(), "eel".into()];
        table.labels = [0, 1, 2, 2].map(|class| Some(ClassId(class))).to_vec();
        table.write(&own).expect("written");
        let write = |name: &str, labels: ArrayRef| files.table(name, &[0.0, 90.0], ("label", labels));
        let named = write("named.parquet", text(&["eel", "cat"]));
        let pair = open(&own, &named, false).expect("by name");
        assert_eq!(pair.queries.labels, [Some(ClassId(2)), Some(ClassId(0))]);
        let pair = open(&own, &write("numbered.parquet", numbers(&[1, -1])), false).expect("by number");
        assert_eq!(pair.queries.labels, [Some(ClassId(1)), None]);
        // Counted from 1, all labels except the last would be another class.
        let error = refused(&own, &write("from-one.parquet", numbers(&[1, 3])));
        assert!(error.contains("row 1: class 3") && error.contains("counted from 1"), "{error}");
        // In reverse, `eel` is the second of the bank's names, and there is no dog.
        let error = refused(&named, &own);
        assert!(error.contains("the class `dog`"), "{error}");
        table.labels = vec![Some(ClassId(2)); 4];
        table.write(&own).expect("written");
        let pair = open(&named, &own, false).expect("all its labels are in the bank");
        assert_eq!(pair.queries.labels, [Some(ClassId(1)); 4]);
        report(&pair, 1, false);
    }

    #[test]
    fn rows_that_share_a_label_are_relevant_and_nothing_votes() {
        let files = Files::new();
        let bank = ("tags", sets(&["sky sea", "", "sea dog dog"]));
        let bank = files.table("bank.parquet", &[0.0, 60.0, 120.0], bank);
        let queries = files.table("queries.parquet", &[59.0, 1.0, 2.0], ("tags", sets(&["dog", "sea", ""])));
        let pair = open(&bank, &queries, false).expect("opened");
        let found = report(&pair, 3, false);
        let retrieval = found.retrieval.as_ref().expect("labels");
        assert!(found.top1.is_nan() && found.notes[0].contains("several labels"), "{:?}", found.notes);
        assert_eq!((found.queries, found.unlabelled_queries, found.bank_rows), (2, 1, 2));
        // For the dog at 59 degrees only the third row is relevant.
        assert_eq!(retrieval.recall[0].recall, 0.5);
        let (first, second) = (1.0 / 3.0, (1.0 + 2.0 / 3.0) / 2.0);
        assert!((retrieval.map - (first + second) / 2.0).abs() < 1e-12, "{}", retrieval.map);
        // A single label per image is a set of one.
        let single = files.table("single.parquet", &[1.0], ("class", text(&["sky"])));
        let pair = open(&bank, &single, false).expect("opened");
        assert_eq!(report(&pair, 1, false).retrieval.expect("labels").recall[0].recall, 1.0);
    }

    /// Applies to lists of names and of numbers.
    #[test]
    fn labels_of_lists_that_the_bank_lacks_are_said_and_no_row_shares_them() {
        let files = Files::new();
        let lists = |values: &[&[i64]]| -> ArrayRef {
            let mut lists = ListBuilder::new(Int64Builder::new());
            values.iter().for_each(|labels| lists.append_value(labels.iter().map(|&label| Some(label))));
            Arc::new(lists.finish())
        };
        let write = |name: &str, angles: &[f32], tags: ArrayRef| files.table(name, angles, ("tags", tags));
        let measured = |bank: &Location, queries: &Location| {
            let notes = Notes::default();
            let pair = KnnPair::open((bank, queries), &Default::default(), false, &notes).expect("opened");
            let retrieval = report(&pair, 2, false).retrieval.expect("labels");
            assert_eq!((retrieval.queries, retrieval.without_relevant), (2, 1));
            (retrieval.map, notes.said())
        };
        let named = write("named.parquet", &[0.0, 90.0], sets(&["sky sea", "sea"]));
        let queries = write("queries.parquet", &[1.0, 89.0], sets(&["sky fog", "fog ice"]));
        let (map, said) = measured(&named, &queries);
        assert!(
            said.contains("queries.parquet: no row of the bank has 2 of its 3 labels: `fog`, `ice`"),
            "{said}"
        );
        let numbered = write("numbered.parquet", &[0.0, 90.0], lists(&[&[4, 7], &[7]]));
        let other = write("other.parquet", &[1.0, 89.0], lists(&[&[4, 900], &[900, 901]]));
        let (of_numbers, said) = measured(&numbered, &other);
        assert_eq!((map, of_numbers), (0.5, 0.5));
        assert!(said.contains("2 of its 3 labels: `900`, `901`"), "{said}");
        // Tables that share no label have different data.
        for (bank, queries, label) in [
            (&named, write("ice.parquet", &[1.0], sets(&["ice"])), "`ice`"),
            (&numbered, write("900.parquet", &[1.0], lists(&[&[900]])), "`900`"),
        ] {
            let error = refused(bank, &queries);
            assert!(error.contains(label) && error.contains("lacks"), "{error}");
        }
    }

    #[test]
    fn a_column_without_any_label_is_none_and_floats_are_labels_where_they_are_whole() {
        let files = Files::new();
        let write = |name: &str, label: ArrayRef| files.table(name, &[0.0, 60.0, 120.0], ("label", label));
        let floats =
            |values: [f64; 3]| -> ArrayRef { Arc::new(arrow::array::Float64Array::from(values.to_vec())) };
        let numbered = write("numbered.parquet", numbers(&[1, 0, 2]));
        let opened = |queries: &Location| {
            let notes = Notes::default();
            let pair = KnnPair::open((&numbered, queries), &Default::default(), false, &notes);
            (pair.expect("opened").queries.labels, notes.said())
        };
        for (name, empty) in [
            ("text.parquet", text(&["-"; 3])),
            ("none.parquet", numbers(&[-1; 3])),
            ("lists.parquet", sets(&[""; 3])),
            ("nan.parquet", floats([f64::NAN; 3])),
        ] {
            let (labels, said) = opened(&write(name, empty));
            assert_eq!(labels, [None; 3], "{name}");
            assert!(said.contains(&format!("{name}: 3 rows, ")), "{said}");
            assert!(said.contains("no label in any row of `label`"), "{said}");
        }
        let (labels, said) = opened(&write("floats.parquet", floats([2.0, f64::NAN, 0.0])));
        assert_eq!(labels, [Some(ClassId(2)), None, Some(ClassId(0))]);
        assert!(said.contains("class numbers as floats, NaN for none, of `label`"), "{said}");
        let error = refused(&numbered, &write("parts.parquet", floats([2.0, 0.25, 0.0])));
        assert!(error.contains("holds 0.25 in row 1, expected whole numbers"), "{error}");
        assert!(error.contains("--label-column"), "{error}");
    }

    #[test]
    fn wrong_ids_name_the_cure() {
        let files = Files::new();
        let write = |name: &str, ids: &[i64]| files.table(name, &[0.0, 60.0], ("id", numbers(ids)));
        let bank = write("bank.parquet", &[0, 1]);
        for (ids, what) in [([7, 7], "7 in row 1: it occurs twice"), ([-3, 7], "-3 in row 0: out of range")] {
            let error = refused(&bank, &write("queries.parquet", &ids));
            assert!(error.contains("queries.parquet: column `id` holds") && error.contains(what), "{error}");
            assert!(error.contains("--id-column, or none by ''"), "{error}");
        }
    }

    #[test]
    fn columns_are_named_for_both_tables_or_for_each() {
        let files = Files::new();
        let bank = files.table("bank.parquet", &[0.0, 90.0], ("kind", text(&["a", "b"])));
        let queries = files.table("q.parquet", &[0.0, 90.0], ("sort", text(&["b", "a"])));
        let named = |name: &str| ColumnNames { label: Some(name.into()), ..ColumnNames::default() };
        let open = |columns| KnnPair::open((&bank, &queries), &columns, false, &Quiet);
        let pair = open([named("kind"), named("sort")]).expect("opened");
        assert_eq!(pair.queries.labels, [Some(ClassId(1)), Some(ClassId(0))]);
        let error = open([named("kind"), named("kind")]).expect_err("refused").to_string();
        assert!(
            error.contains("q.parquet: column `kind` is missing, the table has `vec`, `sort`"),
            "{error}"
        );
        assert!(error.contains("where bank and queries differ give --label-column for each"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn one_file_by_two_names_is_compared_with_itself() {
        let files = Files::new();
        let bank = files.table("bank.parquet", &[0.0, 10.0, 90.0], ("class", text(&["a", "a", "b"])));
        let link = files.0.path().join("link.parquet");
        std::os::unix::fs::symlink(files.0.path().join("bank.parquet"), &link).expect("linked");
        let link = Location::from_path(&link).expect("a location");
        let pair = open(&bank, &link, false).expect("opened");
        assert!(pair.unrelated.is_none() && pair.queries.ids.iter().copied().eq(pair.bank.ids()));
        assert!(says(&pair, "find themselves"));
        assert_eq!([false, true].map(|without| report(&pair, 1, without).top1), [1.0, 2.0 / 3.0]);
    }

    #[test]
    fn rows_are_left_out_by_ids_that_can_be_compared_alone() {
        let files = Files::new();
        let write = |name: &str, ids: Option<ArrayRef>, angles: &[f32], classes: &[&str]| {
            let ids = ids.map(|ids| ("id", ids));
            let columns = [("vec", vectors(angles, 1.0)), ("class", text(classes))];
            files.write(name, &ids.into_iter().chain(columns).collect::<Vec<_>>())
        };
        let classes = ["a", "a", "b"];
        let bank =
            write("bank.parquet", Some(text(&["x.jpg", "y.jpg", "z.jpg"])), &[0.0, 10.0, 90.0], &classes);
        let queries = write("queries.parquet", Some(text(&["z.jpg", "new.jpg"])), &[90.0, 0.0], &["b", "a"]);
        let pair = open(&bank, &queries, false).expect("opened");
        assert_eq!(pair.queries.ids[0], pair.bank.id(2));
        assert!(!pair.bank.ids().any(|id| id == pair.queries.ids[1]) && pair.unrelated.is_none());
        // The query's own row is the only one of class b.
        assert_eq!([false, true].map(|without| report(&pair, 1, without).top1), [1.0, 0.5]);
        let unnamed = write("unnamed.parquet", None, &[0.0, 90.0], &["a", "b"]);
        let numbered = write("numbered.parquet", Some(numbers(&[2, 0])), &[90.0, 0.0], &["b", "a"]);
        for (bank, queries) in
            [(&bank, &unnamed), (&unnamed, &numbered), (&numbered, &unnamed), (&bank, &numbered)]
        {
            let pair = open(bank, queries, false).expect("opened");
            assert!(pair.unrelated.is_some());
            assert!(
                pair.queries.ids.iter().all(|id| !pair.bank.ids().any(|of_bank| of_bank == *id)),
                "no row is another's"
            );
            assert!(!says(&pair, "themselves"));
        }
        let pair = open(&bank, &numbered, false).expect("opened");
        assert_eq!(pair.row_names[1], RowNames::Numbers(vec![InstanceId(2), InstanceId(0)]));
        // Rows of the same file are the same.
        let pair = open(&unnamed, &unnamed, false).expect("opened");
        assert!(pair.unrelated.is_none() && pair.queries.ids.iter().copied().eq(pair.bank.ids()));
    }

    #[test]
    fn vectors_of_another_length_need_an_option() {
        let files = Files::new();
        let write = |name: &str, length: f32| {
            files.write(name, &[("vec", vectors(&[0.0, 80.0], length)), ("class", text(&["a", "b"]))])
        };
        let (long, unit) = (write("long.parquet", 3.0), write("unit.parquet", 1.0));
        let error = refused(&unit, &long);
        assert!(
            error.contains("long.parquet row 0: the vector has length 3.0000")
                && error.contains("--normalize")
        );
        assert_eq!(report(&open(&unit, &long, true).expect("opened"), 1, false).top1, 1.0);
        assert_eq!(report(&open(&long, &unit, true).expect("opened"), 1, false).top1, 1.0);
    }
}
