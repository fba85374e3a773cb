//! What this PostgreSQL takes at best.

use anyhow::Result;

use crate::options::CeilingArgs;
use crate::verdict::Exit;

pub fn ceiling(_args: &CeilingArgs) -> Result<Exit> {
    Ok(Exit::Passed)
}
