//! Probes of inspections: what a plan copies out beside its results.

use kernels::ir::{BaseOp, Block, BufId, Op};

/// Which layers an inspection looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layers {
    /// None.
    #[default]
    None,
    /// One.
    One(u32),
    /// All.
    All,
}

impl Layers {
    fn has(self, layer: Option<u32>) -> bool {
        match self {
            Layers::None => false,
            Layers::One(l) => layer == Some(l),
            Layers::All => layer.is_some(),
        }
    }
}

/// What is copied out. Probes are named after what they hold and their layer: `attn.q.3`. Integers become floats
/// (exact below 2^24).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Look {
    /// `attn.q.N` and `attn.out.N`: what the attend op reads and writes; `select.N`: rows the indexer kept;
    /// `index.q.N`, `index.w.N`: its queries and head weights.
    pub attention: Layers,
    /// `write.C`: rows as they go into cache component C, before they are stored.
    pub writes: bool,
    /// `experts.N`, `weights.N`: choices of the router.
    pub routers: bool,
    /// `embed`: the residual before the first layer.
    pub embedding: bool,
    /// `lens.N`: logits of the output layer applied to the residual after layer N.
    pub lens: bool,
    /// The last layer that is run; the output layer is then left out. `None` = everything.
    pub until: Option<u32>,
}

fn probe(x: BufId, name: String, near: &BaseOp) -> BaseOp {
    BaseOp {
        op: Op::Probe { x, name },
        name: "probe".into(),
        layer: near.layer,
        block: near.block,
    }
}

impl Look {
    /// Whether layer `layer` is run.
    pub(super) fn runs(&self, layer: u32) -> bool {
        self.until.is_none_or(|last| layer <= last)
    }

    /// Appends a block's ops with the probes asked for among them.
    pub(super) fn weave(&self, block: &[BaseOp], out: &mut Vec<BaseOp>) {
        for base in block {
            let layer = base.layer.unwrap_or_default();
            let attention = self.attention.has(base.layer);
            match &base.op {
                Op::Attend { q, out: o, .. } if attention => {
                    out.push(probe(*q, format!("attn.q.{layer}"), base));
                    out.push(base.clone());
                    out.push(probe(*o, format!("attn.out.{layer}"), base));
                    continue;
                }
                Op::IndexScore { q, weights, .. } if attention => {
                    out.push(probe(*q, format!("index.q.{layer}"), base));
                    out.push(probe(*weights, format!("index.w.{layer}"), base));
                }
                Op::CacheWrite { src, cache, .. } if self.writes => {
                    out.push(probe(*src, format!("write.{}", cache.0), base));
                }
                _ => {}
            }
            out.push(base.clone());
            match &base.op {
                Op::SelectTopK { out: o, .. } if attention => out.push(probe(*o, format!("select.{layer}"), base)),
                Op::Route {
                    out_experts,
                    out_weights,
                    ..
                } if self.routers => {
                    out.push(probe(*out_experts, format!("experts.{layer}"), base));
                    out.push(probe(*out_weights, format!("weights.{layer}"), base));
                }
                Op::Embed { out: o, .. } if self.embedding => out.push(probe(*o, "embed".into(), base)),
                _ => {}
            }
        }
    }

    /// Appends the output layer's ops after layer `layer`, with their logits copied out. They read the residual and
    /// write buffers of their own, so the model goes on as if they were not there.
    pub(super) fn lens(&self, head: &[BaseOp], logits: BufId, layer: u32, out: &mut Vec<BaseOp>) {
        if !self.lens {
            return;
        }
        out.extend(head.iter().cloned());
        out.push(BaseOp {
            op: Op::Probe {
                x: logits,
                name: format!("lens.{layer}"),
            },
            name: "probe".into(),
            layer: None,
            block: Block::Head,
        });
    }
}
