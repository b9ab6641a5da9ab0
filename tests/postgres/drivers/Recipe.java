import org.postgresql.ds.PGPoolingDataSource;

/** One request by the recipe of docs/tagging.md, on a pool of one connection to the URL in args[0]. */
public final class Recipe {
    public static void main(String[] args) throws Exception {
        PGPoolingDataSource pool = new PGPoolingDataSource();
        pool.setDataSourceName("recipe");
        pool.setUrl(args[0]);
        pool.setUser("app");
        pool.setMaxConnections(1);
        Tagged.request(pool);
        pool.close();
    }
}
