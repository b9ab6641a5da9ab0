import java.sql.Connection;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import javax.sql.ConnectionEvent;
import javax.sql.ConnectionEventListener;
import javax.sql.PooledConnection;
import org.postgresql.ds.PGConnectionPoolDataSource;

/**
 * pgjdbc's pooled connection against the URL in args[0]: what Bursar ends for a budget is an error of the
 * transaction, and the driver tells no pool that the connection is lost. Prints a line for each.
 */
public final class Kept {
    private interface Work {
        void on(Connection db) throws Exception;
    }

    private static void run(Connection db, String sql) throws SQLException {
        try (Statement statement = db.createStatement()) {
            statement.execute(sql);
        }
    }

    private static Work again(long pause) {
        return db -> {
            while (true) {
                run(db, "select 1");
                Thread.sleep(pause);
            }
        };
    }

    private static void ownRow(PGConnectionPoolDataSource source, Connection db) throws SQLException {
        try (Connection outer = source.getPooledConnection().getConnection()) {
            outer.setAutoCommit(false);
            run(outer, "set bursar.request_id = 'call'");
            outer.commit();
            run(outer, "update kept set n = 1");
            run(db, "set bursar.request_id = 'call'");
            db.commit();
            run(db, "update kept set n = 2");
        }
    }

    private static void ends(PooledConnection pooled, String route, String code, Work work) throws Exception {
        try (Connection db = pooled.getConnection()) {
            db.setAutoCommit(false);
            run(db, "set bursar.route = '" + route + "'");
            db.commit();
            try {
                work.on(db);
            } catch (SQLException error) {
                if (!error.getSQLState().equals(code)) {
                    throw error;
                }
            }
            db.rollback();
            try (Statement statement = db.createStatement(); ResultSet rows = statement.executeQuery("select 1")) {
                rows.next();
            }
            db.commit();
            if (!db.isValid(10)) {
                throw new AssertionError("not valid after " + code);
            }
        }
        System.out.println("ok pgjdbc " + code);
    }

    public static void main(String[] args) throws Exception {
        PGConnectionPoolDataSource source = new PGConnectionPoolDataSource();
        source.setUrl(args[0]);
        source.setUser("app");
        PooledConnection pooled = source.getPooledConnection();
        pooled.addConnectionEventListener(new ConnectionEventListener() {
            @Override
            public void connectionClosed(ConnectionEvent event) {}

            @Override
            public void connectionErrorOccurred(ConnectionEvent event) {
                event.getSQLException().printStackTrace();
                System.exit(1);
            }
        });
        ends(pooled, "/idle", "25P03", again(300));
        ends(pooled, "/old", "25P04", again(20));
        ends(pooled, "/slow", "57014", db -> run(db, "select pg_sleep(60)"));
        ends(pooled, "/row", "40P01", db -> ownRow(source, db));
        pooled.close();
    }
}
