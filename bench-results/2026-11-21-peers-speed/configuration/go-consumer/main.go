// The consumer that one writes first: read a message, insert the row, commit the offset. One reader a partition (as
// goroutines in one group), one statement a message, the offset only after the row: at least once.
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

func consume(statement *sql.Stmt) {
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
		if _, err := statement.Exec(m.Token, m.Source, m.Path, m.Value, m.Time, time.Now()); err != nil {
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
	statement, err := db.Prepare(insert)
	if err != nil {
		log.Fatal("prepare the insert: ", err)
	}
	for i := 1; i < readers; i++ {
		go consume(statement)
	}
	consume(statement)
}
