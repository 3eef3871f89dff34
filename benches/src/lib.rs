//! What the benches share: inputs, specs, the limits of the machine, and timing in pairs.

pub mod inputs;
pub mod limits;
pub mod pair;
pub mod specs;
