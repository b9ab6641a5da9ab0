import java.io.StringReader;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.List;
import java.util.Properties;
import org.postgresql.PGConnection;

/**
 * The JDBC driver against the URL in args[0]; prints a line for each thing that works. args[1] sets this
 * copy of the program off from others, args[2] is prepareThreshold.
 */
public final class Jdbc {
    private static void ok(String what) {
        System.out.println("ok " + what);
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    /** The SQLSTATE with which it fails. */
    private static String failure(Connection db, String sql) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.execute(sql);
        } catch (SQLException error) {
            return error.getSQLState();
        }
        throw new AssertionError("should fail: " + sql);
    }

    private static int number(Connection db, String sql) throws SQLException {
        try (Statement statement = db.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            check(rows.next(), "a row");
            return rows.getInt(1);
        }
    }

    private static void run(Connection db, String sql) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.execute(sql);
        }
    }

    /** More often than prepareThreshold, so that the driver goes over to a named statement, and to binary. */
    private static void prepared(Connection db) throws SQLException {
        try (PreparedStatement twice = db.prepareStatement("select ? * 2, ?::text, ?::timestamptz")) {
            for (int n = 0; n < 12; n++) {
                twice.setInt(1, n);
                twice.setString(2, "naïve " + n);
                twice.setString(3, "2020-02-03 04:05:06+00");
                try (ResultSet rows = twice.executeQuery()) {
                    check(rows.next() && rows.getInt(1) == 2 * n, "twice " + n);
                    check(rows.getString(2).equals("naïve " + n), "text " + n);
                    check(rows.getTimestamp(3).getTime() == 1580702706000L, "time " + n);
                }
            }
        }
    }

    private static void transactions(Connection db, String table) throws SQLException {
        db.setAutoCommit(false);
        run(db, "insert into " + table + " values (1, 'one')");
        Savepoint savepoint = db.setSavepoint();
        check(failure(db, "insert into " + table + " values (1, 'again')").equals("23505"), "twice");
        check(failure(db, "select 1").equals("25P02"), "the transaction has failed");
        db.rollback(savepoint);
        db.commit();
        run(db, "insert into " + table + " values (2, 'two')");
        db.rollback();
        db.setAutoCommit(true);
        check(number(db, "select count(*) from " + table) == 1, "one row");
    }

    private static void batch(Connection db, String table) throws SQLException {
        db.setAutoCommit(false);
        try (PreparedStatement insert = db.prepareStatement("insert into " + table + " values (?, ?)")) {
            for (int n = 100; n < 600; n++) {
                insert.setInt(1, n);
                insert.setString(2, "row " + n);
                insert.addBatch();
            }
            check(insert.executeBatch().length == 500, "a batch");
        }
        db.commit();
        // A cursor of the protocol: some rows at a time.
        try (PreparedStatement all = db.prepareStatement("select id from " + table + " order by id")) {
            all.setFetchSize(50);
            int count = 0;
            try (ResultSet rows = all.executeQuery()) {
                while (rows.next()) {
                    count++;
                }
            }
            check(count == 501, "a cursor: " + count);
        }
        db.commit();
        db.setAutoCommit(true);
    }

    private static void copies(Connection db, String table) throws Exception {
        StringBuilder lines = new StringBuilder();
        for (int n = 1000; n < 2000; n++) {
            lines.append(n).append("\tcopied\n");
        }
        var copy = db.unwrap(PGConnection.class).getCopyAPI();
        check(copy.copyIn("copy " + table + " from stdin", new StringReader(lines.toString())) == 1000, "copied");
        try {
            copy.copyIn("copy " + table + " from stdin", new StringReader("no number\tx\n"));
            throw new AssertionError("bad data should fail");
        } catch (SQLException error) {
            check(error.getSQLState().equals("22P02"), error.getSQLState());
        }
    }

    /** By the driver's own timer: it sends one cancel request for a statement, and never another. */
    private static void cancel(Connection db) throws Exception {
        try (Statement sleep = db.createStatement()) {
            sleep.setQueryTimeout(2);
            sleep.execute("select pg_sleep(60)");
            throw new AssertionError("should be cancelled");
        } catch (SQLException error) {
            check(error.getSQLState().equals("57014"), error.getSQLState());
        }
    }

    private static void settings(Connection db, String copy) throws SQLException {
        run(db, "set application_name = 'jdbc" + copy + "'");
        db.setClientInfo("ApplicationName", "info" + copy);
        db.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        try (Statement statement = db.createStatement();
                ResultSet rows = statement.executeQuery("select current_setting('application_name')")) {
            check(rows.next() && rows.getString(1).equals("info" + copy), "application_name");
        }
        check(db.getTransactionIsolation() == Connection.TRANSACTION_SERIALIZABLE, "isolation");
        db.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
    }

    public static void main(String[] args) throws Exception {
        String table = "jdbc_t" + args[1];
        Properties properties = new Properties();
        properties.setProperty("user", "app");
        if (!args[2].isEmpty()) {
            properties.setProperty("prepareThreshold", args[2]);
        }
        try (Connection db = DriverManager.getConnection(args[0], properties)) {
            check(number(db, "select 41 + 1") == 42, "a query");
            ok("query");
            run(db, "drop table if exists " + table);
            run(db, "create table " + table + " (id int primary key, note text)");
            prepared(db);
            ok("prepared");
            transactions(db, table);
            ok("transactions");
            batch(db, table);
            ok("batch and cursor");
            copies(db, table);
            ok("copy");
            check(failure(db, "select 1 / 0").equals("22012"), "division by zero");
            check(failure(db, "selec").equals("42601"), "a syntax error");
            ok("errors");
            try (PreparedStatement any = db.prepareStatement("select count(*) from " + table + " where id = any (?)")) {
                Array ids = db.createArrayOf("int4", List.of(1, 100, 1000).toArray());
                for (int n = 0; n < 7; n++) {
                    any.setArray(1, ids);
                    try (ResultSet rows = any.executeQuery()) {
                        check(rows.next() && rows.getInt(1) == 3, "an array");
                    }
                }
            }
            ok("array");
            check(db.getMetaData().getColumns(null, null, table, null).next(), "metadata");
            ok("metadata");
            settings(db, args[1]);
            ok("settings");
            cancel(db);
            check(number(db, "select 1") == 1, "afterwards");
            ok("cancel");
        }
    }
}
