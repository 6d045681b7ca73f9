//! What must hold at every step, one file each. A violation is a text.

mod durable;
mod election;
mod leases;
mod log;
mod machines;
mod reads;
mod watches;
mod writes;

pub use durable::Durable;
pub use election::Elections;
pub use leases::Leases;
pub use log::Log;
pub use machines::Machines;
pub use reads::Reads;
pub use watches::Watches;
pub use writes::Writes;

/// Ok, or what is violated and how.
pub type Check = Result<(), String>;

/// All of them.
#[derive(Default)]
pub struct Invariants {
    pub elections: Elections,
    pub log: Log,
    pub durable: Durable,
    pub machines: Machines,
    pub writes: Writes,
    pub reads: Reads,
    pub watches: Watches,
    pub leases: Leases,
}
