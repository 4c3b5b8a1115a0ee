//! Which recipe to take for a budget of KL.

use protocol::SweepRow;

use super::{Candidate, Listener, Price, Sweep};
use crate::compare::SIDES;
use crate::error::EngineError;
use crate::recipe::{Choice, Recipe};
use crate::watch::Watch;

/// The cheapest recipe found within the budget.
#[derive(Clone, Debug)]
pub struct Recommended {
    /// Its figures, measured as a whole: changes do not simply add up.
    pub row: SweepRow,
    /// The recipe.
    pub recipe: Recipe,
    /// Combinations that were measured to find it.
    pub tried: Vec<SweepRow>,
}

/// A change in one place with what it is known to cost alone.
struct Item {
    place: String,
    choice: Choice,
    saved: f64,
    kl: f64,
}

/// Builds combinations from single changes: those with the least KL per byte saved first, one per place, as many as
/// the budget lets. Prefixes of that order are measured, several at a time, until the longest that fits is found.
/// `singles` and `others`: rows measured before; `others` may be recommended, too. `budget`: mean KL(A||B) in nats.
/// `None` where nothing within the budget is cheaper than A.
///
/// # Errors
/// As [`Sweep::measure`].
pub fn recommend(
    sweep: &mut Sweep,
    base: &SweepRow,
    singles: &[(Candidate, SweepRow)],
    others: &[(Candidate, SweepRow)],
    budget: f64,
    watch: &mut Watch<'_>,
    tell: &mut Listener<'_>,
) -> Result<Option<Recommended>, EngineError> {
    let prefixes = prefixes(sweep, base, singles);
    let mut tried: Vec<(Candidate, SweepRow)> = Vec::new();
    // The longest prefix that fits lies in low..high; prefix 0 is A and fits.
    let (mut low, mut high) = (0, prefixes.len());
    while low + 1 < high {
        let between = high - low - 1;
        let count = between.min(SIDES);
        let numbers: Vec<usize> = (1..=count).map(|k| low + k * (between + 1) / (count + 1)).collect();
        let some: Vec<Candidate> = numbers.iter().map(|&k| prefixes[k].clone()).collect();
        let measured = sweep.measure(&some, watch, tell)?;
        if !measured.failed.is_empty() {
            break;
        }
        let rows = measured.rows;
        let mut next = (low, high);
        for (&k, row) in numbers.iter().zip(&rows) {
            if row.kl.mean <= budget {
                next.0 = next.0.max(k);
            }
        }
        // KL need not grow with every change: what lies above the last one that fits is looked at again.
        for (&k, row) in numbers.iter().zip(&rows) {
            if row.kl.mean > budget && k > next.0 {
                next.1 = next.1.min(k);
            }
        }
        tried.extend(some.into_iter().zip(rows));
        if next == (low, high) {
            break;
        }
        (low, high) = next;
    }
    let all = singles.iter().chain(others).chain(&tried);
    let fits = all.filter(|(_, r)| r.kl.mean <= budget && Price::Bytes.of(r) < Price::Bytes.of(base));
    let best = fits.min_by(|(_, a), (_, b)| {
        (Price::Bytes.of(a), a.kl.mean)
            .partial_cmp(&(Price::Bytes.of(b), b.kl.mean))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    Ok(best.map(|(candidate, row)| Recommended {
        row: row.clone(),
        recipe: candidate.recipe.clone(),
        tried: tried.iter().map(|(_, r)| r.clone()).collect(),
    }))
}

/// A, A with the best change, with the two best, ...
fn prefixes(sweep: &Sweep, base: &SweepRow, singles: &[(Candidate, SweepRow)]) -> Vec<Candidate> {
    let a = sweep.a().clone();
    let mut items: Vec<Item> = singles
        .iter()
        .filter_map(|(candidate, row)| {
            let change = candidate.recipe.changes_from(&a).into_iter().next()?;
            let saved = Price::Bytes.of(base) - Price::Bytes.of(row);
            (saved > 0.0).then_some(Item {
                place: change.selector,
                choice: change.choice,
                saved,
                kl: row.kl.mean,
            })
        })
        .collect();
    // Equal ones in the order they were measured.
    items.sort_by(|x, y| (x.kl / x.saved).total_cmp(&(y.kl / y.saved)));
    let mut current = a.clone();
    let mut taken: Vec<(String, f64)> = Vec::new();
    let mut out = vec![sweep.base()];
    for item in items {
        let earlier = taken.iter().position(|(p, _)| *p == item.place);
        if let Some(i) = earlier {
            // A second choice for a place takes over only where it saves more.
            if taken[i].1 >= item.saved {
                continue;
            }
            taken.swap_remove(i);
        }
        let (facts, registry) = (sweep.engine().facts(), sweep.engine().registry());
        if current.set_choice(&item.place, item.choice, facts, registry).is_err() {
            continue;
        }
        taken.push((item.place, item.saved));
        out.push(Candidate::new(&a, current.clone()));
    }
    out
}
