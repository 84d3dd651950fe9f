//! pacsync simulations.
