//! Replays of tiny models against the ops' own outputs and counters.

use std::sync::Arc;

use kernels::ir::{CacheId, CacheRows, Component, StepOutput};
use protocol::{AttentionMap, AttentionSpec, Segment, StepRecord};

use super::*;
use crate::Watch;
use crate::goldens::{engine, ids};
use crate::lower::{Layers, Look};
use crate::session::{Cancel, Session, SessionOptions};

fn recipe(engine: &Engine, edits: &[&str]) -> Recipe {
    let mut r = engine.recipe();
    for e in edits {
        r.set(e, engine.facts(), engine.registry()).unwrap();
    }
    r
}

/// Calls with a watch that nobody uses.
fn watched<T>(f: impl FnOnce(&mut Watch<'_>) -> Result<T, EngineError>) -> Result<T, EngineError> {
    f(&mut Watch {
        cancel: &Cancel::default(),
        progress: &mut |_, _| {},
    })
}

fn session(engine: &Arc<Engine>, recipe: &Recipe, look: Look) -> Session {
    let options = SessionOptions {
        look,
        ..SessionOptions::default()
    };
    engine.session(recipe.clone(), options).unwrap()
}

/// A row of the layer's cache component, wherever it lies.
fn stored(session: &Session, layer: u32, component: Component, row: usize) -> Vec<f32> {
    let caches = session.state().caches();
    let at = caches
        .iter()
        .position(|c| c.layer == layer && c.component == component)
        .unwrap();
    let slot = match caches[at].rows {
        CacheRows::Ring { capacity, .. } => row % capacity,
        CacheRows::Growing { .. } => row,
    };
    session.state().read_rows(CacheId(at as u32), slot, 1).unwrap()
}

/// Columns of a map as (component of the values, row); `None` = sink.
fn columns(map: &AttentionMap, dense: bool) -> Vec<Option<(Component, usize)>> {
    let mut out = Vec::new();
    for s in &map.segments {
        match *s {
            Segment::Tokens { first, columns } => {
                let c = if dense { Component::Values } else { Component::Window };
                out.extend((0..columns as usize).map(|i| Some((c, first as usize + i))));
            }
            Segment::Rows { first, columns, .. } => {
                out.extend((0..columns as usize).map(|i| Some((Component::Rows, first as usize + i))));
            }
            Segment::Sink => out.push(None),
        }
    }
    out
}

/// The map's probabilities times the stored values are what the attend op put out.
fn check_map(name: &str, edits: &[&str], layer: u32, (n, from): (usize, usize)) {
    let engine = engine(name);
    let (recipe, ids) = (recipe(&engine, edits), ids(&engine, n));
    let replay = Replay {
        engine: &engine,
        recipe: &recipe,
        ids: &ids,
    };
    let facts = engine.facts().layers[layer as usize].clone();
    let maps: Vec<AttentionMap> = (0..facts.heads as u32)
        .map(|h| {
            let spec = AttentionSpec {
                layer,
                head: Some(h),
                from: from as u64,
                to: n as u64,
            };
            watched(|w| replay.attention(&spec, w)).unwrap()
        })
        .collect();
    let columns = columns(&maps[0], facts.rate == 0 && facts.window == 0);
    let look = Look {
        attention: Layers::One(layer),
        ..Look::default()
    };
    let mut session = session(&engine, &recipe, look);
    let d = facts.head_dim;
    let mut worst = 0.0f64;
    for chunk in ids.chunks(128) {
        let start = session.position() as usize;
        session.feed(chunk, None, &Cancel::default(), &mut ()).unwrap();
        let probes = &session.output().probes;
        let (_, width, out) = probes
            .iter()
            .find(|(p, _, _)| *p == format!("attn.out.{layer}"))
            .unwrap();
        for t in (start..start + chunk.len()).filter(|&t| t >= from) {
            for (h, map) in maps.iter().enumerate() {
                let row = &map.values[(t - from) * columns.len()..(t - from + 1) * columns.len()];
                let total: f64 = row.iter().filter(|&&p| p >= 0.0).map(|&p| f64::from(p)).sum();
                assert!((total - 1.0).abs() < 1e-5, "row {t} adds up to {total}");
                let mut sum = vec![0.0f64; d];
                for (&p, c) in row.iter().zip(&columns) {
                    let Some((component, r)) = c.filter(|_| p > 0.0) else {
                        continue;
                    };
                    let values = stored(&session, layer, component, r);
                    let kv = h / (facts.heads / facts.kv_heads);
                    for (s, v) in sum.iter_mut().zip(&values[kv * d..(kv + 1) * d]) {
                        *s += f64::from(p) * f64::from(*v);
                    }
                }
                let own = &out[(t - start) * width + h * d..][..d];
                for (a, b) in sum.iter().zip(own) {
                    worst = worst.max((a - f64::from(*b)).abs());
                }
            }
        }
    }
    assert!(worst < 1e-4, "{name} layer {layer} {edits:?}: {worst}");
    assert!(worst > 0.0, "the two are computed apart");
}

#[test]
fn maps_explain_the_outputs_of_dense_layers() {
    check_map("tiny-llama", &[], 1, (40, 0));
    check_map("tiny-llama", &["layers.*.kv_cache=fp8_b64"], 3, (150, 100));
    check_map("tiny-llama", &["layers.2.attention=top_k:k=5"], 2, (30, 3));
    check_map(
        "tiny-qwen2",
        &["layers.0.attention=sliding_window:window=6,sinks=2"],
        0,
        (40, 10),
    );
}

#[test]
fn maps_explain_the_outputs_of_model1_layers() {
    for layer in 0..6 {
        check_map("tiny-v4", &[], layer, (150, 110));
    }
    check_map(
        "tiny-v4",
        &["layers.*.kv_cache=fp8_b64", "layers.*.attention=top_k:k=4"],
        4,
        (60, 0),
    );
    check_map("tiny-v4", &["layers.2.attention=dense"], 2, (60, 40));
    check_map("tiny-v4-fp8", &[], 1, (40, 0));
}

#[test]
fn columns_say_what_they_are() {
    let engine = engine("tiny-v4");
    let ids = ids(&engine, 80);
    let recipe = engine.recipe();
    let replay = Replay {
        engine: &engine,
        recipe: &recipe,
        ids: &ids,
    };
    let map = |layer, head| {
        let spec = AttentionSpec {
            layer,
            head,
            from: 60,
            to: 80,
        };
        watched(|w| replay.attention(&spec, w)).unwrap()
    };
    let csa = map(2, None);
    let rows = Segment::Rows {
        first: 0,
        columns: 20,
        rate: 4,
        overlap: true,
    };
    // The window is 8: the first query sees tokens 53 to 60.
    let tokens = Segment::Tokens { first: 53, columns: 27 };
    assert_eq!(csa.segments, [tokens, rows, Segment::Sink]);
    assert_eq!(csa.values.len(), 20 * 48);
    assert_eq!((csa.heads, csa.head_stats.len(), csa.tokens.len()), (4, 4, 80));
    let row = |m: &AttentionMap, i: usize| m.values[i * 48..(i + 1) * 48].to_vec();
    let first = row(&csa, 0);
    assert!(first[..8].iter().all(|&p| p > 0.0) && first[8..27].iter().all(|&p| p == -1.0));
    // 15 rows are visible at 60, three of them kept; later rows are not there yet.
    assert_eq!(first[27..42].iter().filter(|&&p| p > 0.0).count(), 3);
    assert_eq!(first[27..42].iter().filter(|&&p| p == 0.0).count(), 12);
    assert!(first[42..47].iter().all(|&p| p == -1.0) && first[47] > 0.0);
    // The mean over heads.
    let heads: Vec<AttentionMap> = (0..4).map(|h| map(2, Some(h))).collect();
    for (i, p) in csa.values.iter().enumerate().filter(|(_, p)| **p >= 0.0) {
        let mean = heads.iter().map(|m| m.values[i]).sum::<f32>() / 4.0;
        assert!((mean - p).abs() < 1e-6);
    }
    assert_eq!(map(0, None).segments, [tokens, Segment::Sink]);
    let hca = map(3, Some(1));
    let rows = Segment::Rows {
        first: 0,
        columns: 5,
        rate: 16,
        overlap: false,
    };
    assert_eq!(hca.segments[1], rows);
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let engine = engine("tiny-v4");
    let ids = ids(&engine, 20);
    let recipe = engine.recipe();
    let replay = Replay {
        engine: &engine,
        recipe: &recipe,
        ids: &ids,
    };
    let refused = |layer, head, from, to| {
        let spec = AttentionSpec { layer, head, from, to };
        watched(|w| replay.attention(&spec, w)).unwrap_err().to_string()
    };
    assert!(refused(9, None, 0, 5).contains("accepted are 0 to 5"));
    assert!(refused(0, Some(4), 0, 5).contains("head 4"));
    assert!(refused(0, None, 5, 5).contains("1 to 1024"));
    assert!(refused(0, None, 0, 21).contains("20 tokens"));
    let e = watched(|w| replay.kept_rows(3, w)).unwrap_err().to_string();
    assert!(e.contains("no indexer"), "{e}");
    let e = watched(|w| replay.metric("colour", w)).unwrap_err().to_string();
    assert!(e.contains("norm of the residual"), "{e}");
    let empty = Replay { ids: &[], ..replay };
    assert!(watched(|w| empty.router(w)).is_err());
    let llama = self::engine("tiny-llama");
    let recipe = llama.recipe();
    let dense = Replay {
        engine: &llama,
        recipe: &recipe,
        ids: &ids,
    };
    assert!(
        watched(|w| dense.router(w))
            .unwrap_err()
            .to_string()
            .contains("no experts")
    );
    let cancel = Cancel::default();
    cancel.cancel();
    let mut watch = Watch {
        cancel: &cancel,
        progress: &mut |_, _| {},
    };
    assert!(matches!(replay.router(&mut watch), Err(EngineError::Cancelled)));
}

#[test]
fn recall_is_the_dense_mass_on_kept_rows() {
    let engine = engine("tiny-v4");
    let ids = ids(&engine, 150);
    // In f32 the sparse and the dense replay see the same queries and rows in layer 2.
    let (own, dense) = (engine.recipe(), recipe(&engine, &["layers.2.attention=dense"]));
    let replay = |recipe| Replay {
        engine: &engine,
        recipe,
        ids: &ids,
    };
    let kept = watched(|w| replay(&own).kept_rows(2, w)).unwrap();
    assert_eq!((kept.kept.len(), kept.recall.len(), kept.rows.len()), (150, 150, 37));
    assert_eq!((kept.rows[0].first, kept.rows[0].last), (0, 3));
    assert_eq!((kept.rows[5].first, kept.rows[5].last), (16, 23));
    let maps: Vec<AttentionMap> = (0..4)
        .map(|h| {
            let spec = AttentionSpec {
                layer: 2,
                head: Some(h),
                from: 0,
                to: 150,
            };
            watched(|w| replay(&dense).attention(&spec, w)).unwrap()
        })
        .collect();
    let Segment::Tokens { columns: window, .. } = maps[0].segments[0] else {
        panic!("{:?}", maps[0].segments);
    };
    let width: usize = maps[0].segments.iter().map(|s| s.columns() as usize).sum();
    let (mut hits, mut local, mut recalls) = (0.0, 0.0, Vec::new());
    for t in 0..150 {
        let visible = (t + 1) / 4;
        assert_eq!(kept.kept[t].len(), visible.min(3));
        assert!(kept.kept[t].iter().all(|&r| (r as usize) < visible));
        if visible < 6 {
            assert!(kept.recall[t].is_nan());
            continue;
        }
        let mut mass = vec![0.0f64; visible];
        let mut recall = 0.0;
        for m in &maps {
            let rows = &m.values[t * width + window as usize..][..visible];
            let sum: f64 = rows.iter().map(|&p| f64::from(p)).sum();
            recall += kept.kept[t].iter().map(|&r| f64::from(rows[r as usize])).sum::<f64>() / sum / 4.0;
            mass.iter_mut().zip(rows).for_each(|(a, &p)| *a += f64::from(p) / sum);
        }
        assert!((recall - f64::from(kept.recall[t])).abs() < 1e-5, "recall at {t}");
        let best = (0..visible).max_by(|&a, &b| mass[a].total_cmp(&mass[b])).unwrap();
        hits += f64::from(u8::from(kept.kept[t].contains(&(best as u32))));
        local += kept.kept[t].iter().filter(|&&r| r as usize + 3 >= visible).count() as f64 / 3.0;
        recalls.push(recall);
    }
    let n = recalls.len() as f64;
    assert_eq!(kept.judged as usize, recalls.len());
    assert!((f64::from(kept.attn_recall) - recalls.iter().sum::<f64>() / n).abs() < 1e-5);
    assert!((f64::from(kept.attn_recall_min) - recalls.iter().copied().fold(1.0, f64::min)).abs() < 1e-5);
    assert!((f64::from(kept.top1_hit) - hits / n).abs() < 1e-5);
    assert!((f64::from(kept.select_local_ratio) - local / n).abs() < 1e-5);
    // Where everything is read, everything is kept and nothing is judged.
    let all = watched(|w| replay(&dense).kept_rows(2, w)).unwrap();
    assert_eq!((all.kept[149].len(), all.judged), (37, 0));
    assert!(all.attn_recall.is_nan());
}

#[test]
fn kept_rows_come_best_first() {
    let engine = engine("tiny-v4");
    let ids = ids(&engine, 100);
    let of = |edits: &[&str]| {
        let recipe = recipe(&engine, edits);
        let replay = Replay {
            engine: &engine,
            recipe: &recipe,
            ids: &ids,
        };
        watched(|w| replay.kept_rows(2, w)).unwrap()
    };
    // The indexer's first choice is what is left when it may keep one row only... which no recipe says; but the
    // order must be one of the kept set, the same each time, and not simply by number.
    let (a, b) = (of(&[]), of(&[]));
    assert_eq!(a.kept, b.kept);
    let sorted = |v: &Vec<u32>| v.windows(2).all(|w| w[0] < w[1]);
    assert!(
        a.kept.iter().any(|k| !sorted(k)),
        "some orders differ from the row numbers"
    );
    let fp4 = of(&["layers.2.index_cache=fp4"]);
    assert_eq!(fp4.kept.len(), 100);
}

/// Layers with other numbers of experts per token: theirs, then places that name no expert.
#[test]
fn routers_show_as_many_experts_as_the_recipe_sends_tokens_to() {
    let engine = engine("tiny-v4");
    let ids = ids(&engine, 30);
    let map = |edits: &[&str]| {
        let mut recipe = engine.recipe();
        for e in edits {
            recipe.set(e, engine.facts(), engine.registry()).unwrap();
        }
        let replay = Replay {
            engine: &engine,
            recipe: &recipe,
            ids: &ids,
        };
        watched(|w| replay.router(w)).unwrap()
    };
    let own = map(&[]);
    // The last layer chooses by scores, the first by its table; what comes before the last one is as it was.
    let b = map(&["layers.5.ffn=experts:k=4"]);
    assert_eq!((own.per_token, b.per_token), (2, 4));
    for t in 0..30 {
        for l in 0..6 {
            let (two, four) = (
                &own.choices[(l * 30 + t) * 2..][..2],
                &b.choices[(l * 30 + t) * 4..][..4],
            );
            if l < 5 {
                assert_eq!(&four[..2], two);
                assert_eq!(four[2..], [(u16::MAX, 0.0); 2]);
                continue;
            }
            // The first two of four, and weights that share the same sum out to all of them.
            assert!(four[0].0 == two[0].0 && four[1].0 == two[1].0);
            let sum = |c: &[(u16, f32)]| c.iter().map(|c| c.1).sum::<f32>();
            assert!((sum(four) - sum(two)).abs() < 1e-5, "{four:?} {two:?}");
            assert!((four[0].1 / four[1].1 - two[0].1 / two[1].1).abs() < 1e-4);
            assert!(four.iter().all(|(e, w)| *e < 8 && *w > 0.0));
        }
    }
    let one = map(&["layers.0.ffn=experts:k=1"]);
    for t in 0..30 {
        let (two, one) = (&own.choices[t * 2..][..2], &one.choices[t * 2..][..2]);
        assert_eq!((one[0].0, one[1]), (two[0].0, (u16::MAX, 0.0)));
        assert!((one[0].1 - (two[0].1 + two[1].1)).abs() < 1e-5);
    }
}

#[test]
fn routers_agree_with_the_load_counters() {
    let engine = engine("tiny-v4");
    let (ids, recipe) = (ids(&engine, 140), engine.recipe());
    let replay = Replay {
        engine: &engine,
        recipe: &recipe,
        ids: &ids,
    };
    let map = watched(|w| replay.router(w)).unwrap();
    assert_eq!(map.layers, [0, 1, 2, 3, 4, 5]);
    assert_eq!((map.experts, map.per_token, map.choices.len()), (8, 2, 6 * 140 * 2));
    let mut load = vec![vec![0u32; 8]; 6];
    let mut session = session(&engine, &recipe, Look::default());
    session
        .feed(&ids, None, &Cancel::default(), &mut |r: &StepRecord, _: &StepOutput| {
            for (sum, l) in load.iter_mut().zip(&r.layers) {
                sum.iter_mut().zip(&l.expert_load).for_each(|(a, b)| *a += b);
            }
        })
        .unwrap();
    for (l, counted) in load.iter().enumerate() {
        let mut seen = vec![0u32; 8];
        for (e, w) in &map.choices[l * 280..(l + 1) * 280] {
            seen[usize::from(*e)] += 1;
            assert!(*w > 0.0);
        }
        assert_eq!(seen, *counted, "layer {l}");
    }
    let first = watched(|w| replay.metric("weight of the first expert", w)).unwrap();
    for (i, v) in first.values.iter().enumerate() {
        assert_eq!(*v, map.choices[2 * i].1);
    }
}

#[test]
fn metrics_are_what_they_say() {
    let engine = engine("tiny-v4");
    let (ids, recipe) = (
        ids(&engine, 140),
        recipe(&engine, &["layers.3.kv_cache=bf16", "layers.2.index_cache=fp4"]),
    );
    let replay = Replay {
        engine: &engine,
        recipe: &recipe,
        ids: &ids,
    };
    let names = metric_names(engine.facts());
    assert_eq!(names.len(), 8);
    let get = |name: &str| {
        let m = watched(|w| replay.metric(name, w)).unwrap();
        assert_eq!((m.layers, m.tokens, m.values.len()), (6, 140, 840), "{name}");
        m.values.chunks(140).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    for name in &names {
        let all = get(name);
        assert!(all.iter().flatten().all(|v| v.is_finite() && *v >= 0.0), "{name}");
    }
    let rounding = get("cache rounding error");
    assert!(
        rounding[0].iter().chain(&rounding[1]).all(|&e| e == 0.0),
        "f32 rounds nothing"
    );
    assert!(rounding[3].iter().all(|&e| e > 1e-4 && e < 4e-3), "bf16 has 8 bits");
    assert!(
        rounding[2].iter().enumerate().all(|(t, &e)| (e > 0.0) == (t % 4 == 3)),
        "a row closes every 4th token"
    );
    let agrees = get("logit lens: gives the final token");
    let rank = get("logit lens: rank of the final token");
    assert!(agrees[5].iter().all(|&a| a == 1.0) && rank[5].iter().all(|&r| r == 0.0));
    assert!(agrees[0].iter().zip(&rank[0]).all(|(a, r)| (*a == 1.0) <= (*r == 0.0)));
    assert!(rank[0].iter().any(|&r| r > 0.0));
    let entropy = get("entropy of attention (mean over heads)");
    let sink = get("attention on the sink (mean over heads)");
    for layer in [1, 2, 3] {
        let spec = AttentionSpec {
            layer,
            head: None,
            from: 0,
            to: 140,
        };
        let map = watched(|w| replay.attention(&spec, w)).unwrap();
        let mean = |v: &[f32]| v.iter().map(|&x| f64::from(x)).sum::<f64>() / v.len() as f64;
        let heads = |f: fn(&(f32, f32)) -> f32| mean(&map.head_stats.iter().map(f).collect::<Vec<_>>());
        assert!((mean(&entropy[layer as usize]) - heads(|s| s.0)).abs() < 1e-5);
        assert!((mean(&sink[layer as usize]) - heads(|s| s.1)).abs() < 1e-5);
    }
    let llama = self::engine("tiny-llama");
    assert_eq!(metric_names(llama.facts()).len(), 6, "no experts, no sinks");
}

#[test]
fn residual_figures_follow_from_the_probes() {
    let engine = engine("tiny-llama");
    let (ids, recipe) = (ids(&engine, 30), engine.recipe());
    let replay = Replay {
        engine: &engine,
        recipe: &recipe,
        ids: &ids,
    };
    let norm = watched(|w| replay.metric("norm of the residual", w)).unwrap().values;
    let change = watched(|w| replay.metric("relative change of the residual by the layer", w))
        .unwrap()
        .values;
    let options = SessionOptions {
        probes: true,
        ..SessionOptions::default()
    };
    let mut session = engine.session(recipe.clone(), options).unwrap();
    session.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
    let probes = &session.output().probes;
    let width = probes[0].1;
    let row = |l: usize, t: usize| &probes[l].2[t * width..(t + 1) * width];
    let len = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for t in 0..30 {
        for l in 1..4 {
            let (a, b) = (row(l - 1, t), row(l, t));
            let (na, nb) = (len(&mut a.iter().copied()), len(&mut b.iter().copied()));
            let moved = len(&mut a.iter().zip(b).map(|(x, y)| x - y));
            assert!((f64::from(norm[l * 30 + t]) - nb).abs() < 1e-4 * nb);
            assert!((f64::from(change[l * 30 + t]) - moved / na).abs() < 1e-4);
        }
    }
}

#[test]
fn looking_changes_nothing() {
    for name in ["tiny-v4", "tiny-v4-fp8", "tiny-gpt2"] {
        let engine = engine(name);
        let ids = ids(&engine, 60);
        let recipe = engine.recipe();
        let logits = |look| {
            let mut s = session(&engine, &recipe, look);
            s.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
            s.output().logits.clone()
        };
        let all = Look {
            attention: Layers::All,
            writes: true,
            routers: true,
            embedding: true,
            ..Look::default()
        };
        assert_eq!(logits(Look::default()), logits(all), "{name}");
    }
}
