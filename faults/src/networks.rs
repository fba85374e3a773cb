//! The three networks of one process, each through a proxy of its own, so that each can be cut for that process alone.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use rowmill_faults::proxy::{Proxy, Weather};

use crate::stack::redirect;
use crate::world::World;

pub(crate) struct Networks {
    pub(crate) postgres: Proxy,
    pub(crate) kafka: Kafka,
    pub(crate) redis: Proxy,
}

/// The way to each of the brokers.
pub(crate) struct Kafka(Vec<Proxy>);

impl Kafka {
    fn new(ports: &[(u16, u16)]) -> Result<Kafka> {
        let proxy = |(advertised, real): &(u16, u16)| {
            Proxy::before_any(*advertised, SocketAddr::from(([127, 0, 0, 1], *real)))
                .with_context(|| format!("cannot listen on port {advertised}, which the stack kept free"))
        };
        Ok(Kafka(ports.iter().map(proxy).collect::<Result<_>>()?))
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.0.iter().for_each(|proxy| proxy.set(weather));
    }

    /// See [`Proxy::refuse`].
    pub(crate) fn refuse(&self) -> usize {
        self.0.iter().map(Proxy::refuse).sum()
    }
}

impl Networks {
    /// Those of the process with this number, from 0: the stack has a listener of Kafka for each.
    pub(crate) fn new(world: &World, number: usize) -> Result<Networks> {
        let kafka = world.kafka_members.get(number).context("Kafka has too few listeners")?;
        Ok(Networks {
            postgres: Proxy::before_postgres(postgres_address(&world.url)?)?,
            kafka: Kafka::new(kafka)?,
            redis: Proxy::before_any(0, redis_address(&world.redis_url)?)?,
        })
    }

    /// What the process gets instead of the servers' addresses.
    pub(crate) fn environment(&self, world: &World) -> [(&'static str, String); 3] {
        let local = |proxy: &Proxy| format!("127.0.0.1:{}", proxy.port());
        [
            ("DATABASE_URL", redirect(&world.url, Some(&local(&self.postgres)), None)),
            ("KAFKA_BROKERS", self.kafka.0.iter().map(local).collect::<Vec<_>>().join(",")),
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
