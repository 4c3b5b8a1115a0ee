//! Plans of every golden go over as they are.

use super::frames::{plan_from_cbor, plan_to_cbor};
use crate::{SessionOptions, goldens};

#[test]
fn plans_with_probes_come_over_whole() {
    for name in ["tiny-v4", "tiny-llama", "tiny-gpt2"] {
        let engine = goldens::engine(name);
        let options = SessionOptions {
            probes: true,
            ..SessionOptions::default()
        };
        let mut session = engine.session(engine.recipe(), options).unwrap();
        for tokens in [1, 128] {
            let plan = session.plan(tokens, 0);
            assert!(
                plan_from_cbor(&plan_to_cbor(&plan).unwrap()).unwrap() == *plan,
                "{name}, {tokens} tokens"
            );
        }
    }
    assert!(plan_from_cbor(b"noise").is_err());
}
