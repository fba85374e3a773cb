"""Kafka to PostgreSQL as the documentation of Quix Streams shows it: an application, a topic, the PostgreSQL sink.

The defaults stand: a checkpoint every 5 s, for which each partition's rows are written in one transaction and the offsets
are committed after them. The table is there, so the sink is not asked to make or to change it; its `timestamp` is the
record's.
"""

import os

from quixstreams import Application
from quixstreams.sinks.community.postgresql import PostgreSQLSink

app = Application(
    broker_address=os.environ["KAFKA_BROKERS"],
    consumer_group=os.environ["GROUP"],
    auto_offset_reset="earliest",
    auto_create_topics=False,
    state_dir=os.environ["STATE"],
)
sink = PostgreSQLSink(
    host=os.environ["PGHOST"],
    port=int(os.environ["PGPORT"]),
    dbname=os.environ["PGDATABASE"],
    user=os.environ["PGUSER"],
    password=os.environ["PGPASSWORD"],
    table_name="metric",
    schema_auto_update=False,
)
app.dataframe(app.topic(os.environ["TOPIC"], value_deserializer="json")).sink(sink)

if __name__ == "__main__":
    app.run()
