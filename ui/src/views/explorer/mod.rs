//! The model explorer: the tree of layers, blocks and tensors with the memory they take (left region), the plan of a
//! step as a graph that expands in place, and one tensor in full.

mod cost;
mod digest;
mod flow;
mod memory;
mod panel;
mod plan;
mod row;
mod tensor;
mod tree;

use std::cell::RefCell;
use std::rc::Rc;

use super::View;

/// All views of the explorer.
pub fn views() -> Vec<Box<dyn View>> {
    let shared = Shared::default();
    vec![
        Box::new(panel::Explorer::new(shared.clone())),
        Box::<plan::Plan>::default(),
        Box::new(tensor::Tensor::new(shared)),
    ]
}

/// The tensor that is looked at, by name; clones are the same one.
#[derive(Clone, Debug, Default)]
struct Shared(Rc<RefCell<Option<String>>>);

impl Shared {
    fn tensor(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    fn is(&self, name: &str) -> bool {
        self.0.borrow().as_deref() == Some(name)
    }

    fn choose(&self, name: Option<String>) {
        *self.0.borrow_mut() = name;
    }
}
