//! Objectives as plain loops in f64, written from the papers' equations and not from the program: without
//! tensors, logarithmic domain or tiles.

/// Options of an objective.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `nce`, `softmax` or `infonce`.
    pub(crate) objective: &'static str,
    pub(crate) temperature: f64,
    pub(crate) eps: f64,
    pub(crate) exclude_positive: bool,
    pub(crate) proximal_weight: f64,
}

/// Batch with its bank.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) bank: Vec<Vec<f64>>,
    pub(crate) features: Vec<Vec<f64>>,
    pub(crate) own: Vec<usize>,
    pub(crate) negatives: Vec<Vec<usize>>,
}

/// Loss of a batch, and its gradient with respect to each feature.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) loss: f64,
    pub(crate) gradient: Vec<Vec<f64>>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Problem {
    fn exponential(&self, query: usize, row: usize, settings: &Settings) -> f64 {
        (dot(&self.features[query], &self.bank[row]) / settings.temperature).exp()
    }

    fn drawn(&self, query: usize, settings: &Settings) -> Vec<usize> {
        let kept = |row: &&usize| !settings.exclude_positive || **row != self.own[query];
        self.negatives[query].iter().filter(kept).copied().collect()
    }

    /// Returns the mean of `exp(s/τ)` over positives plus `n - 1` times its mean over negatives.
    #[cfg(feature = "torch")]
    pub(crate) fn partition_by_draws(&self, settings: &Settings) -> f64 {
        let mean = |terms: &[f64]| terms.iter().sum::<f64>() / terms.len().max(1) as f64;
        let queries = 0..self.features.len();
        let positives: Vec<_> =
            queries.clone().map(|query| self.exponential(query, self.own[query], settings)).collect();
        let negatives: Vec<_> = queries
            .flat_map(|query| {
                self.drawn(query, settings).into_iter().map(move |row| (query, row)).collect::<Vec<_>>()
            })
            .map(|(query, row)| self.exponential(query, row, settings))
            .collect();
        mean(&positives) + (self.bank.len() as f64 - 1.0) * mean(&negatives)
    }

    /// Returns `n` times the mean of `exp(s/τ)` over positives and negatives.
    pub(crate) fn partition(&self, settings: &Settings) -> f64 {
        let mut terms = Vec::new();
        for query in 0..self.features.len() {
            terms.push(self.exponential(query, self.own[query], settings));
            for row in self.drawn(query, settings) {
                terms.push(self.exponential(query, row, settings));
            }
        }
        self.bank.len() as f64 * terms.iter().sum::<f64>() / terms.len() as f64
    }

    pub(crate) fn solve(&self, settings: &Settings, z: f64) -> Answer {
        let batch = self.features.len() as f64;
        let mut loss = 0.0;
        let mut gradient = Vec::new();
        for (query, feature) in self.features.iter().enumerate() {
            let own = self.own[query];
            // Pairs of a row and its weight in the gradient, before the division by τ.
            let mut pulls: Vec<(usize, f64)> = Vec::new();
            match settings.objective {
                "nce" => {
                    let noise = self.negatives[query].len() as f64 / self.bank.len() as f64;
                    let c = noise + settings.eps;
                    let model = self.exponential(query, own, settings) / z;
                    loss -= (model / (model + c)).ln();
                    pulls.push((own, -c / (model + c)));
                    for row in self.drawn(query, settings) {
                        let model = self.exponential(query, row, settings) / z;
                        loss -= (noise / (model + c)).ln();
                        pulls.push((row, model / (model + c)));
                    }
                }
                "softmax" | "infonce" => {
                    let mut rows = if settings.objective == "softmax" {
                        (0..self.bank.len()).filter(|&row| row != own).collect()
                    } else {
                        self.drawn(query, settings)
                    };
                    rows.push(own);
                    let all: Vec<f64> =
                        rows.iter().map(|&row| self.exponential(query, row, settings)).collect();
                    let sum: f64 = all.iter().sum();
                    loss -= (self.exponential(query, own, settings) / sum).ln();
                    pulls.extend(rows.iter().zip(&all).map(|(&row, value)| (row, value / sum)));
                    pulls.push((own, -1.0));
                }
                other => panic!("{other} is no objective"),
            }
            let mut slope = vec![0.0; feature.len()];
            for (row, weight) in pulls {
                for (slope, value) in slope.iter_mut().zip(&self.bank[row]) {
                    *slope += weight * value / settings.temperature;
                }
            }
            for ((slope, f), v) in slope.iter_mut().zip(feature).zip(&self.bank[own]) {
                loss += settings.proximal_weight * (f - v).powi(2);
                *slope += 2.0 * settings.proximal_weight * (f - v);
            }
            gradient.push(slope.into_iter().map(|slope| slope / batch).collect());
        }
        Answer { loss: loss / batch, gradient }
    }
}
