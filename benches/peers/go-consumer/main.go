// The consumer that one writes first: read a message, insert the row, commit the offset. One reader a partition (as
// goroutines in one group), one statement a message, the offset only after the row: at least once. With the argument "add", the
// row is added to the one of its user.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"log"
	"os"
	"strings"
	"time"

	_ "github.com/lib/pq"
	"github.com/segmentio/kafka-go"
)

const readers = 6

type metric struct {
	Token  string    `json:"token"`
	Source string    `json:"source"`
	Path   string    `json:"path"`
	Value  float64   `json:"value"`
	Time   time.Time `json:"time"`
}

const insert = `INSERT INTO metric (userid, source, path, value, time, timestamp) VALUES ($1, $2, $3, $4, $5, $6)`

const add = `INSERT INTO metric AS t (userid, n, low, high) VALUES ($1, 1, $2, $2) ON CONFLICT (userid) DO UPDATE
	SET n = t.n + 1, low = least(t.low, excluded.low), high = greatest(t.high, excluded.high)`

func consume(statement *sql.Stmt, values func(metric) []any) {
	ctx := context.Background()
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers:     strings.Split(os.Getenv("KAFKA_BROKERS"), ","),
		Topic:       os.Getenv("TOPIC"),
		GroupID:     os.Getenv("GROUP"),
		StartOffset: kafka.FirstOffset,
	})
	for {
		message, err := reader.FetchMessage(ctx)
		if err != nil {
			log.Fatal("fetch: ", err)
		}
		var m metric
		if err := json.Unmarshal(message.Value, &m); err != nil {
			log.Fatalf("partition %d, offset %d: decode: %v", message.Partition, message.Offset, err)
		}
		if _, err := statement.Exec(values(m)...); err != nil {
			log.Fatalf("partition %d, offset %d: insert: %v", message.Partition, message.Offset, err)
		}
		if err := reader.CommitMessages(ctx, message); err != nil {
			log.Fatal("commit: ", err)
		}
	}
}

func main() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL")+"?sslmode=disable")
	if err != nil {
		log.Fatal("open the database: ", err)
	}
	db.SetMaxIdleConns(readers)
	query, values := insert, func(m metric) []any {
		return []any{m.Token, m.Source, m.Path, m.Value, m.Time, time.Now()}
	}
	if len(os.Args) > 1 && os.Args[1] == "add" {
		query, values = add, func(m metric) []any { return []any{m.Token, m.Value} }
	}
	statement, err := db.Prepare(query)
	if err != nil {
		log.Fatal("prepare the insert: ", err)
	}
	for i := 1; i < readers; i++ {
		go consume(statement, values)
	}
	consume(statement, values)
}
