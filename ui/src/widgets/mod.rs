//! Pieces that several views share.
