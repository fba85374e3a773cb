//! `--find-max`.

use anyhow::Result;

use crate::options::Plan;
use crate::verdict::Exit;

pub fn find_max(_plan: Plan) -> Result<Exit> {
    Ok(Exit::Passed)
}
