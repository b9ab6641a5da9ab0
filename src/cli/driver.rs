//! The client side of `bench` and `demo`: tokio-postgres, and the console's views as plain rows.

use std::collections::BTreeMap;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage};

/// One row of a console view, by column name; NULL is left out.
pub(super) type Row = BTreeMap<String, String>;

/// Connects without TLS; the connection lives as long as the client.
///
/// # Errors
/// The server cannot be reached or does not let us in.
pub(super) async fn connect(config: &Config) -> Result<Client, Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // Its error reaches whoever waits for an answer from `client`.
    tokio::spawn(connection);
    Ok(client)
}

/// The rows of `SHOW …` or any other statement, by the simple protocol.
///
/// # Errors
/// The server refuses the statement, or is gone.
pub(super) async fn rows(client: &Client, sql: &str) -> Result<Vec<Row>, Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let named = rows.map(|row| {
        let columns = row.columns().iter().enumerate();
        columns.filter_map(|(i, column)| Some((column.name().to_owned(), row.get(i)?.to_owned()))).collect()
    });
    Ok(named.collect())
}
