//! The three networks of one process, each through a proxy of its own, so that each can be cut for that process alone.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use rowmill_faults::proxy::Proxy;

use crate::stack::redirect;
use crate::world::World;

pub(crate) struct Networks {
    pub(crate) postgres: Proxy,
    pub(crate) kafka: Proxy,
    pub(crate) redis: Proxy,
}

impl Networks {
    /// Those of the process with this number, from 0: the stack has a listener of Kafka for each.
    pub(crate) fn new(world: &World, number: usize) -> Result<Networks> {
        let (advertised, real) = *world.kafka_members.get(number).context("Kafka has too few listeners")?;
        let kafka = SocketAddr::from(([127, 0, 0, 1], real));
        Ok(Networks {
            postgres: Proxy::before_postgres(postgres_address(&world.url)?)?,
            kafka: Proxy::before_any(advertised, kafka)
                .with_context(|| format!("cannot listen on port {advertised}, which the stack kept free"))?,
            redis: Proxy::before_any(0, redis_address(&world.redis_url)?)?,
        })
    }

    /// What the process gets instead of the servers' addresses.
    pub(crate) fn environment(&self, world: &World) -> [(&'static str, String); 3] {
        let local = |proxy: &Proxy| format!("127.0.0.1:{}", proxy.port());
        [
            ("DATABASE_URL", redirect(&world.url, Some(&local(&self.postgres)), None)),
            ("KAFKA_BROKERS", local(&self.kafka)),
            ("REDIS_URL", format!("redis://{}/0", local(&self.redis))),
        ]
    }
}

fn postgres_address(url: &str) -> Result<SocketAddr> {
    let address = url.rsplit_once('@').and_then(|(_, rest)| rest.split_once('/'));
    let (address, _) = address.with_context(|| "PostgreSQL's URL names no server")?;
    address.parse().with_context(|| format!("{address:?} in PostgreSQL's URL is no address"))
}

/// The stack's Redis has no password, and the campaign uses its database 0.
fn redis_address(url: &str) -> Result<SocketAddr> {
    let address = url.strip_prefix("redis://").and_then(|rest| rest.strip_suffix("/0"));
    let address = address.with_context(|| format!("{url} is not redis://ADDRESS/0"))?;
    address.parse().with_context(|| format!("{address:?} in Redis's URL is no address"))
}
