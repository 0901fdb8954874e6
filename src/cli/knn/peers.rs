//! Several processes that search together: each has some rows of the bank.

use rayon::ThreadPool;

use super::{Alone, KnnArgs, Pair, Searchers};
use crate::distributed::ProcessGroup;
use crate::eval::{EvalError, KnnOptions, KnnReport, evaluate_by, search_over, share};
use crate::feature_table::{FeatureTable, Table, TableSlice, UnitRows};
use crate::search::{Neighbours, search};

/// The processes of a job.
pub(super) struct Peers {
    pub(super) group: ProcessGroup,
    pub(super) local_rank: usize,
}

impl Peers {
    pub(super) fn join(args: &KnnArgs) -> anyhow::Result<Self> {
        let rendezvous = args.ranks.rendezvous()?;
        Ok(Self { group: args.ranks.join(&rendezvous)?, local_rank: rendezvous.local_rank() })
    }
}

impl Searchers for Peers {
    fn is_first(&self) -> bool {
        self.group.is_first()
    }

    fn leave(&self) {
        self.group.leave();
    }

    fn evaluate(
        &self,
        pair: &Pair,
        options: &KnnOptions,
        pool: &ThreadPool,
    ) -> Result<(KnnReport, Neighbours), EvalError> {
        if self.group.world() == 1 {
            return Alone.evaluate(pair, options, pool);
        }
        self.group.agree("the bank", &format!("{:?}, {} rows", pair.bank.meta(), pair.bank.ids().len()))?;
        self.group.agree("the queries' number", &pair.queries.len().to_string())?;
        let own = share(pair.bank.ids().len(), &self.group);
        let slice = TableSlice::new(&*pair.bank, own.clone());
        let unit;
        let rows: &dyn Table = if slice.meta().unit_length {
            &slice
        } else {
            unit = UnitRows::new(&slice);
            &unit
        };
        let find = |queries: &FeatureTable, k| {
            let here = |k| pool.install(|| search(rows, queries, k, false));
            let bank = (pair.bank.ids(), own.clone());
            search_over(&self.group, bank, queries, (k, options.leave_one_out), here)
        };
        evaluate_by(&*pair.bank, &pair.queries, options, &find)
    }
}
